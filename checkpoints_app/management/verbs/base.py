from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a verb found or did. `data` is plain JSON; `is_ok` False makes the exit code 1."""

    data: Any
    is_ok: bool = True


class Verb(ABC):
    """One subcommand. Errors a person can act on are raised as `CheckpointError`."""

    summary: ClassVar[str]

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None: ...

    @abstractmethod
    def run(self, options: dict[str, Any]) -> Result: ...

    @abstractmethod
    def show(self, result: Result) -> str:
        """The result as text for a person."""

"""What every place that keeps chunks can do. A backend knows bytes under digests, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Usage:
    chunks: int
    size_bytes: int
    """As stored: compressed, without the backend's own overhead."""


class Backend(ABC):
    """Keeps sealed chunks by digest. Safe to use from several threads.

    A digest names its content, so there is nothing to update: putting a chunk that exists already,
    even from two processes at once, changes nothing.
    """

    is_durable: ClassVar[bool]
    """Survives the end of the process."""
    is_shared: ClassVar[bool]
    """Other processes see the same chunks."""

    @abstractmethod
    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        """Those of `digests` that are not here: what a save must put."""

    @abstractmethod
    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        """Keep all of `chunks`. They are as safe as the backend can make them on return."""

    @abstractmethod
    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        """The chunks that are here; missing ones are left out."""

    @abstractmethod
    def delete(self, digests: Collection[bytes]) -> int:
        """Forget chunks and return how many there were."""

    @abstractmethod
    def usage(self) -> Usage:
        """How much is kept. May read everything once."""

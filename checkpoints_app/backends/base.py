"""What every place that keeps chunks can do. A backend knows bytes under digests, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
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
    is_transactional: ClassVar[bool] = False
    """Chunks commit together with the index row, inside the database's transaction."""

    @abstractmethod
    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        """Those of `digests` that are not here: what a save must put."""

    def add(self, digests: Collection[bytes], stored: Callable[[bytes], bytes]) -> int:
        """Keep those of `digests` that are not here, as `stored` gives them; return their bytes."""
        new = {digest: stored(digest) for digest in self.missing(digests)} if digests else {}
        if new:
            self.put(new)
        return sum(map(len, new.values()))

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
    def digests(self) -> Iterator[bytes]:
        """Of every chunk, in any order, perhaps twice. Those that come or go meanwhile may miss."""

    @abstractmethod
    def usage(self) -> Usage:
        """How much is kept. May read everything once."""

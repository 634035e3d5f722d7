"""`results.json`: every figure of every benchmark, beside the peer's that it is compared with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value, the peer's of the same run, and what must be reached, if anything."""

    value: float
    unit: str
    peer: str = ""
    peer_value: float = 0.0
    ratio_at_most: float | None = None
    """The highest allowed ratio of the value to the peer's."""
    at_most: float | None = None
    """The highest allowed value."""

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None

    @property
    def must_reach(self) -> str:
        if self.ratio_at_most is not None:
            return f"\u2264 {_fraction(self.ratio_at_most)}"
        return "" if self.at_most is None else f"\u2264 {self.at_most:g} {self.unit}".rstrip()

    @property
    def is_reached(self) -> bool | None:
        """None when nothing must be reached."""
        if self.ratio_at_most is not None:
            return self.ratio is not None and self.ratio <= self.ratio_at_most
        return None if self.at_most is None else self.value <= self.at_most

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"value": round(self.value, 3), "unit": self.unit}
        if self.peer:
            found["peer"] = {"name": self.peer, "value": round(self.peer_value, 3)}
            found["ratio"] = None if self.ratio is None else round(self.ratio, 5)
        if self.must_reach:
            found |= {"must_reach": self.must_reach, "is_reached": self.is_reached}
        return found


def _fraction(limit: float) -> str:
    return f"1/{round(1 / limit)}" if limit < 1 else f"{limit:g}"


def print_table(figures: Mapping[str, Figure]) -> None:
    """The figures that must reach something, with their peers."""
    print(f"\n{'figure':<58}{'value':>14}{'peer':>16}{'ratio':>9}{'must':>9}  reached")
    for name, found in figures.items():
        if found.is_reached is not None:
            ratio = "" if found.ratio is None else f"{found.ratio:.4f}"
            peer = f"{found.peer_value:,.2f}" if found.peer else ""
            print(
                f"{name:<58}{found.value:>14,.2f}{peer:>16}{ratio:>9}"
                f"{found.must_reach:>9}  {'yes' if found.is_reached else 'NO'}"
            )


def keep(figures: Mapping[str, Figure]) -> None:
    """Merge the figures into `results.json`, beside those of other benchmarks."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    new = {name: found.as_json() for name, found in figures.items()}
    known["figures"] = {**known.get("figures", {}), **new}
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0

"""Run every benchmark: `make bench`. Results go to `benchmarks/results.json`."""

from __future__ import annotations

from benchmarks import checkpointing

if __name__ == "__main__":
    checkpointing.main()

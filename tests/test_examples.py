from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_script_makes_the_same_sales_file_again(tmp_path: Path) -> None:
    script = runpy.run_path(str(EXAMPLES / "make_sales.py"))

    script["write"](tmp_path / "sales.csv")

    assert (tmp_path / "sales.csv").read_bytes() == (EXAMPLES / "sales.csv").read_bytes()

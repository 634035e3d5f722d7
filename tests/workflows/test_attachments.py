from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from pytest_django import Settings

from workflows import attachments
from workflows.attachments import AttachmentRefused, StoredFile

SALES = b"region,revenue\nEMEA,10.5\nAPAC,20\n"


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path) -> Path:
    settings.ATTACHMENT_DIR = tmp_path / "attachments"
    return tmp_path / "attachments"


def store(content: bytes, name: str) -> StoredFile:
    return attachments.store(io.BytesIO(content), name=name)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_it_keeps_a_file_under_the_hash_of_its_bytes(folder: Path) -> None:
    stored = store(SALES, "sales.csv")

    digest = hashlib.sha256(SALES).hexdigest()
    assert (stored.sha256, stored.size_bytes) == (digest, len(SALES))
    assert (folder / digest[:2] / digest).read_bytes() == SALES


def test_it_summarises_a_table() -> None:
    stored = store(SALES, "sales.csv")

    columns = [{"name": "region", "type": "VARCHAR"}, {"name": "revenue", "type": "DOUBLE"}]
    assert stored.kind == "table"
    assert stored.summary == {"tables": [{"name": "sales", "rows": 2, "columns": columns}]}


def test_it_summarises_a_text() -> None:
    stored = store("Größe\nzwei".encode(), "notes.md")

    assert stored.kind == "text"
    assert stored.summary == {"characters": 9, "lines": 2}


def test_it_keeps_the_same_bytes_once(folder: Path) -> None:
    first, second = store(SALES, "sales.csv"), store(SALES, "again.csv")

    assert first.sha256 == second.sha256
    assert len(files_in(folder)) == 1


def test_it_leaves_nothing_of_a_refused_file(folder: Path) -> None:
    with pytest.raises(AttachmentRefused):
        store(b"a,b\n1\n", "broken.csv")

    assert files_in(folder) == []


def test_it_refuses_an_empty_file() -> None:
    with pytest.raises(AttachmentRefused, match=r"sales\.csv is empty"):
        store(b"", "sales.csv")


def test_it_refuses_a_file_that_is_too_large(settings: Settings, folder: Path) -> None:
    settings.ATTACHMENT_MAX_BYTES = 10

    with pytest.raises(AttachmentRefused, match="larger than"):
        store(SALES, "sales.csv")

    assert files_in(folder) == []


def test_it_refuses_an_unknown_kind_and_names_the_known_ones() -> None:
    with pytest.raises(AttachmentRefused, match=r"image\.png .*Attach one of: \.csv"):
        store(b"\x89PNG", "image.png")


@pytest.mark.parametrize(
    "name", ["../up.csv", "a/b.csv", "a\\b.csv", "a\x00b.csv", "a\nb.csv", "", ".csv", "x" * 300]
)
def test_it_refuses_a_name_that_is_not_sane(name: str) -> None:
    with pytest.raises(AttachmentRefused, match=r"(?i)name"):
        store(SALES, name)


def test_it_refuses_too_many_files(settings: Settings) -> None:
    settings.ATTACHMENT_MAX_COUNT = 2

    with pytest.raises(AttachmentRefused, match="at most 2"):
        attachments.check(["a.csv", "b.csv", "c.csv"])


def test_it_refuses_two_files_of_one_name() -> None:
    with pytest.raises(AttachmentRefused, match="Rename"):
        attachments.check(["Sales.csv", "sales.csv"])


def test_it_accepts_different_names() -> None:
    attachments.check(["sales.csv", "sales.json"])


def test_it_describes_nothing_as_nothing() -> None:
    assert attachments.describe([]) == ""


def test_it_describes_tables_and_texts() -> None:
    described = attachments.describe([store(SALES, "sales.csv"), store(b"Hello.", "notes.txt")])

    assert described.splitlines() == [
        "Attached files:",
        "- notes.txt: text, 1 line, 6 characters",
        '- sales.csv: table sales, 2 rows, columns "region" VARCHAR, "revenue" DOUBLE',
        "Texts can also be queried: table document_lines (document, line, text).",
    ]


def test_it_numbers_tables_that_would_share_a_name() -> None:
    described = attachments.describe([store(SALES, "sales.csv"), store(SALES, "Sales!.csv")])

    assert "table sales," in described
    assert "table sales_2," in described


def test_it_describes_the_same_whatever_the_order() -> None:
    files = [store(SALES, "b.csv"), store(b"Hello.", "a.txt")]

    assert attachments.describe(files) == attachments.describe(files[::-1])

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from threading import Timer
from typing import Any

import duckdb
import pytest
from openpyxl import Workbook
from pypdf import PdfWriter

from workflows.reader import Reader, ReaderError, table_names


class Folder:
    """Files of a test, opened together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[tuple[str, Path]] = []
        self.readers: list[Reader] = []

    def add(self, name: str, content: bytes | str) -> Folder:
        path = self.path / f"file{len(self.files)}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.files.append((name, path))
        return self

    def open(self) -> Reader:
        self.readers.append(Reader(self.files))
        return self.readers[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    for reader in folder.readers:
        reader.close()


@pytest.fixture
def reader(folder: Folder) -> Reader:
    """Over one table, `t`, with the numbers 1 to 3."""
    return folder.add("t.csv", "n\n1\n2\n3\n").open()


def rows(folder: Folder, sql: str = "") -> list[list[Any]]:
    reader = folder.open()
    name = table_names(reader.summaries())[0][0]
    return reader.query(sql or f"FROM {name}", limit=100).rows


def columns(folder: Folder) -> dict[str, str]:
    (table,) = folder.open().summaries()[0]["tables"]
    return {column["name"]: column["type"] for column in table["columns"]}


def refusal(folder: Folder) -> str:
    with pytest.raises(ReaderError) as refused:
        folder.open().summaries()
    return str(refused.value)


def xlsx(*sheets: tuple[str, list[list[Any]]]) -> bytes:
    book, file = Workbook(), io.BytesIO()
    book.remove(book.worksheets[0])
    for title, cells in sheets:
        sheet = book.create_sheet(title)
        for row in cells:
            sheet.append(row)
    book.save(file)
    book.close()
    return file.getvalue()


def pdf(*pages: str) -> bytes:
    """A minimal PDF with one line of text a page."""
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
    ]
    font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} "
            f"/Contents {4 + 2 * number} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        body
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
            f"startxref\n{len(body)}\n%%EOF\n"
        ).encode()
    )


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_it_finds_the_delimiter(folder: Folder, sign: str) -> None:
    folder.add("t.csv", "a,b\n1,x\n2,y\n".replace(",", sign))

    assert rows(folder) == [[1, "x"], [2, "y"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_it_reads_any_usual_encoding(folder: Folder, encoding: str) -> None:
    folder.add("t.csv", "größe,ort\n1,Málaga\n".encode(encoding))

    assert columns(folder) == {"größe": "BIGINT", "ort": "VARCHAR"}
    assert rows(folder) == [[1, "Málaga"]]


def test_it_reads_decimal_commas(folder: Folder) -> None:
    folder.add("t.csv", "betrag;tag\n1.234,56;31.12.2024\n-7,5;01.02.2025\n")

    assert rows(folder) == [[1234.56, "2024-12-31"], [-7.5, "2025-02-01"]]


def test_it_reads_grouped_digits_and_currency_signs(folder: Folder) -> None:
    folder.add("t.csv", 'amount\n"$1,234.50"\n$7\n')

    assert rows(folder) == [[1234.5], [7.0]]


def test_it_keeps_codes_with_leading_zeros(folder: Folder) -> None:
    assert rows(folder.add("t.csv", "code\n007\n012\n")) == [["007"], ["012"]]


def test_it_does_not_take_north_america_for_a_missing_value(folder: Folder) -> None:
    assert rows(folder.add("t.csv", "region,n\nNA,1\n,2\n")) == [["NA", 1], [None, 2]]


def test_it_sees_that_there_is_no_header(folder: Folder) -> None:
    assert rows(folder.add("t.csv", "1,2\n3,4\n")) == [[1, 2], [3, 4]]


def test_it_takes_years_beside_a_name_for_a_header(folder: Folder) -> None:
    folder.add("t.csv", "region,2023,2024\nEMEA,1,2\n")

    assert columns(folder) == {"region": "VARCHAR", "2023": "BIGINT", "2024": "BIGINT"}


def test_it_keeps_odd_names_of_columns(folder: Folder) -> None:
    folder.add("t.csv", 'select,"a ""q""",Größe 数, spaced  out ,select\n1,2,3,4,5\n')

    assert list(columns(folder)) == ["select", 'a "q"', "Größe 数", "spaced out", "select_1"]


def test_it_reads_line_breaks_within_quotes(folder: Folder) -> None:
    assert rows(folder.add("t.csv", 'a,b\n1,"x\ny"\n')) == [[1, "x\ny"]]


def test_it_reads_times_of_any_zone_as_utc(folder: Folder) -> None:
    folder.add("t.csv", "at\n2024-01-01T10:00:00+02:00\n2024-01-01T10:00:00Z\n")

    assert rows(folder) == [["2024-01-01 08:00:00"], ["2024-01-01 10:00:00"]]


def test_it_names_the_line_that_does_not_fit(folder: Folder) -> None:
    lines = "1,2\n" * 30_000

    refused = refusal(folder.add("t.csv", f"a,b\n{lines}3\n"))

    assert refused.startswith("t.csv is not an even table: line 30002 has 1 values")


def test_it_does_not_skip_lines_above_the_header(folder: Folder) -> None:
    assert "line 3" in refusal(folder.add("t.csv", "Report\n\na,b\n1,2\n3,4\n"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", "a,b\n", "holds no rows"),
        ("t.csv", b"a,b\n\x00\x01,2\n", "is not text"),
        ("t.csv", 'a,b\n1,"never closed\n3,4\n', "line 3 can't be read"),
        ("t.json", '{"a": 1}', "list of objects"),
        ("t.json", '{"data": [{"a": 1}]}', "list of objects"),
        ("t.json", "[1, 2]", "list of objects"),
        ("t.json", '[{"a": 1}, 2]', "list of objects"),
        ("t.json", '[{"a": 1}', "list of objects"),
        ("t.json", "[]", "list of objects"),
        ("t.jsonl", '{"a": 1}\n{"a"\n', "Line 2 is not"),
        ("t.parquet", "PAR1 and nothing else", "is not a Parquet file"),
        ("t.xlsx", "not a workbook", "is not a workbook"),
        ("t.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 encrypted", "protected with a password"),
        ("t.pdf", "not a PDF", "is not a PDF"),
        ("t.txt", b"\x7fELF\x00\x01", "is not text"),
        ("t.txt", "\n\n", "holds no text"),
    ],
)
def test_it_says_why_a_file_is_refused(
    folder: Folder, name: str, content: bytes | str, reason: str
) -> None:
    refused = refusal(folder.add(name, content))

    assert refused.startswith(f"{name} ")
    assert reason in refused


def test_it_reads_a_list_of_objects(folder: Folder) -> None:
    folder.add("t.json", json.dumps([{"a": 1, "day": "2024-01-05"}, {"a": None, "b": "ü"}]))

    assert columns(folder) == {"a": "BIGINT", "day": "DATE", "b": "VARCHAR"}
    assert rows(folder) == [[1, "2024-01-05", None], [None, None, "ü"]]


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json"])
def test_it_reads_an_object_per_line(folder: Folder, name: str) -> None:
    assert rows(folder.add(name, '{"a": 1}\n{"a": 2}\n')) == [[1], [2]]


def test_it_reads_parquet(folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "made.parquet"
    duckdb.sql("SELECT 1 AS a, 'x' AS b").write_parquet(str(path))

    assert rows(folder.add("t.parquet", path.read_bytes())) == [[1, "x"]]


def test_it_tells_files_apart_that_are_opened_one_after_the_other(
    folder: Folder, tmp_path: Path
) -> None:
    for number in (1, 2):
        path = tmp_path / f"{number}.parquet"
        duckdb.sql(f"SELECT {number} AS a").write_parquet(str(path))
        folder.add(f"t{number}.parquet", path.read_bytes())

    assert rows(folder, "SELECT t1.a, t2.a FROM t1, t2") == [[1, 2]]


def test_it_reads_every_sheet_of_a_workbook(folder: Folder) -> None:
    folder.add("book.xlsx", xlsx(("North", [["a"], [1]]), ("South East", [["a"], [2]])))

    assert table_names(folder.open().summaries()) == [["book_north", "book_south_east"]]
    assert rows(folder, "SELECT a FROM book_south_east") == [[2]]


def test_it_types_the_columns_of_a_sheet(folder: Folder) -> None:
    header = ["day", "at", "n", "x", "flag", "mixed"]
    first = [date(2024, 1, 2), datetime(2024, 1, 2, 3, 4), 1, 2, True, 5]  # noqa: DTZ001
    second = [date(2024, 1, 3), None, 2, 2.5, False, "five"]
    folder.add("t.xlsx", xlsx(("Only", [[], header, first, second])))

    assert columns(folder) == {
        "day": "DATE",
        "at": "TIMESTAMP",
        "n": "BIGINT",
        "x": "DOUBLE",
        "flag": "BOOLEAN",
        "mixed": "VARCHAR",
    }
    assert rows(folder)[1] == ["2024-01-03", None, 2, 2.5, False, "five"]


def test_it_refuses_a_workbook_that_unpacks_to_far_more(folder: Folder) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as package:
        package.writestr("xl/workbook.xml", "x")
    content = bytearray(file.getvalue())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2 * 1024**3).to_bytes(4, "little")

    assert "unpacks to 2,048 MB" in refusal(folder.add("t.xlsx", bytes(content)))


def test_it_names_a_table_so_that_sql_needs_no_quotes(folder: Folder) -> None:
    folder.add("Sales 2024 (final).csv", "a\nx\n").add("2024.csv", "a\nx\n").add(
        "Select.csv", "a\nx\n"
    )

    assert table_names(folder.open().summaries()) == [
        ["sales_2024_final"],
        ["t_2024"],
        ["select_table"],
    ]


def test_it_numbers_tables_of_one_name(folder: Folder) -> None:
    folder.add("a.csv", "n\n1\n").add("A!.csv", "n\n2\n").add("document_lines.csv", "n\n3\n")

    names = table_names(folder.open().summaries())

    assert names == [["a"], ["a_2"], ["document_lines_2"]]
    assert rows(folder, "SELECT n FROM a_2") == [[2]]


# --- texts ---------------------------------------------------------------------------------------


def test_it_numbers_the_lines_of_a_text(folder: Folder) -> None:
    folder.add("notes.md", "# Title\r\n\r\nGrüße\n")

    assert folder.open().summaries() == [{"kind": "text", "characters": 12, "lines": 3}]
    assert folder.open().query("FROM document_lines ORDER BY line", limit=9).rows == [
        ["notes.md", 1, "# Title"],
        ["notes.md", 2, ""],
        ["notes.md", 3, "Grüße"],
    ]


def test_it_keeps_all_of_a_very_long_line(folder: Folder) -> None:
    folder.add("long.txt", "x" * 25_000)

    found = folder.open().query("SELECT line, length(text) FROM document_lines", limit=9).rows

    assert found == [[1, 10_000], [1, 10_000], [1, 5_000]]


def test_it_reads_the_text_of_a_pdf_by_page(folder: Folder) -> None:
    folder.add("paper.pdf", pdf("Hello whales", "Second"))

    found = folder.open().query("SELECT text FROM document_lines ORDER BY line", limit=9).rows

    assert found == [["[page 1]"], ["Hello whales"], ["[page 2]"], ["Second"]]


def test_it_says_that_a_scanned_pdf_holds_no_text(folder: Folder) -> None:
    assert "OCR" in refusal(folder.add("scan.pdf", pdf("")))


def test_it_refuses_a_pdf_with_a_password(folder: Folder) -> None:
    file, writer = io.BytesIO(), PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    writer.write(file)

    assert "protected with a password" in refusal(folder.add("locked.pdf", file.getvalue()))


# --- queries -------------------------------------------------------------------------------------


def test_it_gives_json_values(reader: Reader) -> None:
    found = reader.query(
        "SELECT 1.50::DECIMAL(9,2), 'nan'::DOUBLE, [1, 2], {'a': 1}, 'x'::BLOB, DATE '2024-01-02',"
        " TIMESTAMPTZ '2024-01-02 03:04:05+00', NULL, true, 12345678901234567890::HUGEINT",
        limit=1,
    )

    (row,) = found.rows
    assert row[:5] == ["1.50", "nan", "[1, 2]", '{"a": 1}', "78"]
    assert row[5:7] == ["2024-01-02", "2024-01-02 03:04:05+00"]
    assert row[7:] == [None, True, 12345678901234567890]


def test_it_says_when_there_are_more_rows(reader: Reader) -> None:
    assert reader.query("FROM t", limit=2).is_truncated
    assert not reader.query("FROM t", limit=3).is_truncated


def test_it_keeps_the_order_of_a_query(reader: Reader) -> None:
    assert reader.query("SELECT n FROM t ORDER BY n DESC", limit=2).rows == [[3], [2]]


@pytest.mark.parametrize(
    "sql", ["DESCRIBE t", "SUMMARIZE t", "SHOW TABLES", "VALUES (1)", "WITH x AS (FROM t) FROM x"]
)
def test_it_allows_every_way_of_reading(reader: Reader, sql: str) -> None:
    assert reader.query(sql, limit=5).rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/dev/fd/0')",
        "SELECT * FROM read_text('/proc/self/environ')",
        "SELECT * FROM read_csv('https://example.com/x.csv')",
        "ATTACH '/tmp/x.db'",
        "ATTACH ':memory:' AS other",
        "COPY t TO '/tmp/x.csv'",
        "EXPORT DATABASE '/tmp/x'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET memory_limit",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "DELETE FROM t",
        "INSERT INTO t VALUES (4)",
        "DROP TABLE t",
        "CREATE TABLE u AS FROM t",
        "WITH gone AS (DELETE FROM t RETURNING *) SELECT count(*) FROM gone",
        "SELECT * FROM query('DELETE FROM t')",
        "EXPLAIN ANALYZE DELETE FROM t",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
        "",
        "-- nothing",
        "SELEC",
        "SELECT missing FROM t",
        "SELECT getenv('HOME')",
    ],
)
def test_it_refuses_whatever_is_not_reading_the_tables(reader: Reader, sql: str) -> None:
    with pytest.raises(ReaderError) as refused:
        reader.query(sql, limit=5)

    assert "root:" not in str(refused.value)
    assert reader.query("SELECT count(*) FROM t", limit=1).rows == [[3]]


def test_it_hands_no_environment_and_no_folder_to_the_child(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    reader = folder.add("t.csv", "n\n1\n").open()

    settings = reader.query("SELECT string_agg(value, ' ') FROM duckdb_settings()", limit=1).rows

    assert "very-secret" not in settings[0][0]
    assert str(Path.home()) not in settings[0][0].split()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT unnest(range(1000000000))",
        "SELECT repeat('x', 3000000000)",
        "SELECT list(i) FROM range(1000000000) r(i)",
        "SELECT count(DISTINCT a.i * 7 + b.i) FROM range(1000000) a(i), range(1000000) b(i)",
    ],
)
def test_it_survives_a_query_that_needs_too_much(reader: Reader, sql: str) -> None:
    with pytest.raises(ReaderError, match=r"memory|stopped"):
        reader.query(sql, limit=5, seconds=3)

    assert reader.query("SELECT count(*) FROM t", limit=1).rows == [[3]]


ENDLESS = "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) SELECT max(i) FROM r"


def test_it_stops_a_query_that_takes_too_long(reader: Reader) -> None:
    with pytest.raises(ReaderError, match=r"stopped after 0\.5 seconds"):
        reader.query(ENDLESS, limit=1, seconds=0.5)

    assert reader.query("SELECT count(*) FROM t", limit=1).rows == [[3]]


def test_it_can_be_interrupted_from_another_thread(reader: Reader) -> None:
    reader.summaries()
    interruption = Timer(0.2, reader.interrupt)
    interruption.start()

    with pytest.raises(ReaderError, match="stopped"):
        reader.query(ENDLESS, limit=1)

    interruption.join()
    assert reader.query("SELECT count(*) FROM t", limit=1).rows == [[3]]


def test_an_interruption_at_rest_disturbs_nobody(reader: Reader) -> None:
    reader.summaries()

    reader.interrupt()

    assert reader.query("SELECT count(*) FROM t", limit=1).rows == [[3]]


def test_it_opens_nothing_after_it_was_closed(reader: Reader) -> None:
    reader.query("FROM t", limit=1)
    reader.close()

    with pytest.raises(ReaderError, match="closed"):
        reader.query("FROM t", limit=1)


def test_it_says_that_a_stored_file_is_gone(folder: Folder) -> None:
    folder.add("t.csv", "n\n1\n").files[0][1].unlink()

    assert "no longer stored" in refusal(folder)

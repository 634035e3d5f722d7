from __future__ import annotations

import re

import pytest

from workflows.markdown import HIGHLIGHT_LIMIT, MARKDOWN_LIMIT, render


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<iframe src=//evil.test></iframe>",
        "<svg/onload=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        "<style>body{display:none}</style>",
        "```<script>\nalert(1)\n```",
        "```html\n<script>alert(1)</script>\n```",
        "`<b onclick=alert(1)>`",
        "| <script>alert(1)</script> |\n|---|\n| <img src=x> |",
    ],
)
def test_it_lets_no_foreign_element_through(text: str) -> None:
    tags = set(re.findall(r"<([a-z0-9]+)", render(text)))

    assert tags <= {"p", "pre", "code", "span", "div", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "/admin/", "//evil.test"]
)
def test_it_links_only_to_whole_addresses(address: str) -> None:
    assert "href" not in render(f"[x]({address})")


def test_it_marks_links_as_foreign() -> None:
    assert 'rel="noopener nofollow"' in render("[x](https://example.com)")


def test_it_loads_no_image() -> None:
    assert "<img" not in render("![chart](https://example.com/chart.png)")


def test_it_aligns_figures_by_a_class() -> None:
    html = render("| a |\n| --: |\n| 1 |")

    assert '<td class="numeric">1</td>' in html
    assert "style=" not in html


def test_it_colours_code_by_classes() -> None:
    html = render("```python\nimport os\n```")

    assert '<span class="kn">import</span>' in html


@pytest.mark.parametrize("language", ["no-such-language", ""])
def test_it_shows_code_of_unknown_languages_plain(language: str) -> None:
    assert "a &lt; b" in render(f"```{language}\na < b\n```")


def test_it_colours_no_endless_code() -> None:
    assert "<span" not in render("```python\n" + "import os\n" * HIGHLIGHT_LIMIT + "```")


def test_it_shows_endless_text_plain() -> None:
    html = render("**x** <b>" + "y" * MARKDOWN_LIMIT)

    assert html.startswith("<pre>**x** &lt;b&gt;")


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("# A\n\n## B", ["4", "5"]),
        ("## A\n\n#### B", ["4", "5"]),
        ("### A\n\n# B", ["4", "4"]),
        ("# A\n\n## B\n\n### C\n\n#### D", ["4", "5", "6", "6"]),
    ],
)
def test_it_fits_headings_below_the_pages_own(text: str, levels: list[str]) -> None:
    assert re.findall(r"<h(\d)>", render(text, top=4)) == levels

"""Markdown as safe HTML. What models write is untrusted: no raw HTML, no images, an allow-list."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MARKDOWN_LIMIT = 100_000
"""Characters rendered as Markdown. Longer texts are shown plain: parsing takes too long."""

HIGHLIGHT_LIMIT = 20_000
"""Characters of one code block that are coloured."""

TAGS = {
    *("p", "br", "hr", "strong", "em", "s", "a", "code", "pre", "span", "div", "blockquote"),
    *("h4", "h5", "h6", "ul", "ol", "li"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {
    "a": {"href", "title"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "ol": {"start"},
    "pre": {"class", "tabindex", "role", "aria-label"},
    "span": {"class"},
    "th": {"class"},
    "td": {"class"},
}


@lru_cache(maxsize=1024)
def render(text: str, *, top: int = 4) -> str:
    """Return sanitised HTML. Its highest heading is of level `top`; code is coloured by classes."""
    html = _plain(text) if len(text) > MARKDOWN_LIMIT else str(_parser.render(text, {"top": top}))
    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener nofollow",
    )


def _plain(text: str) -> str:
    return f"<pre>{nh3.clean_text(text)}</pre>"


def _code(text: str, language: str, _attributes: str = "") -> str:
    """The inside of a code block; an empty string leaves the text to be escaped as it is."""
    if not language or len(text) > HIGHLIGHT_LIMIT:
        return ""
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return ""
    return str(highlight(text, lexer, HtmlFormatter(nowrap=True)))


def _open_table(
    renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any
) -> str:
    """A table in a box of its own that scrolls, also by keyboard."""
    box = '<div class="scroll" tabindex="0" role="group" aria-label="Table">'
    return box + renderer.renderToken(tokens, at, options, env)


def _close_table(
    renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any
) -> str:
    return renderer.renderToken(tokens, at, options, env) + "</div>"


def _open_cell(
    renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any
) -> str:
    """A cell with its alignment as a class: the content policy allows no inline styles."""
    style = str(tokens[at].attrs.pop("style", ""))
    if style.endswith("right"):
        tokens[at].attrs["class"] = "numeric"
    return renderer.renderToken(tokens, at, options, env)


def _fit_headings(state: Any) -> None:
    """Move headings below the page's own, without leaving out a level on the way down."""
    headings = [token for token in state.tokens if token.type in {"heading_open", "heading_close"}]
    levels = sorted({token.tag for token in headings})
    top = state.env["top"]
    level = top - 1
    for token in headings:
        if token.nesting == 1:
            level = min(6, top + levels.index(token.tag), level + 1)
        token.tag = f"h{level}"


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "highlight": _code})
    parser.enable(["table", "strikethrough"]).disable("image")
    parser.core.ruler.push("fit_headings", _fit_headings)
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", _close_table)
    parser.add_render_rule("th_open", _open_cell)
    parser.add_render_rule("td_open", _open_cell)
    return parser


_parser = _make_parser()

"""HTML from Python values: every text is escaped unless it is `Markup`, so names from configs and data stay text."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_EMPTY = frozenset({"br", "img", "input", "meta", "link", "path", "circle", "line", "rect", "polygon", "use"})


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: `Markup` as it is; other values as escaped text; sequences in order; None is left out.
        attributes: escaped. An underscore stands for a hyphen, and one at the end keeps a name apart from a Python
            keyword, as in `class_`; True gives an attribute without a value, None and False leave it out.
    """
    written = "".join(
        f" {_attribute_name(key)}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}/>" if name in _EMPTY else f"<{name}{written}>{join(children)}</{name}>")


def _attribute_name(key: str) -> str:
    return key if key in ("viewBox", "preserveAspectRatio") else key.rstrip("_").replace("_", "-")


def join(children: Iterable[Any], separator: str = "") -> Markup:
    """Values one after another, escaped as by `tag`."""
    return Markup(separator.join(map(_as_markup, children)))


def _as_markup(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple) or hasattr(child, "__next__"):
        return join(child)
    return html.escape(str(child))


def data_script(identifier: str, content: Any) -> Markup:
    """Plain data for a script to read; no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>')


def document(title: str, *body: Any) -> str:
    """A whole page with its style and script inside.

    Its content security policy lets it load nothing from anywhere and run no script but its own.
    """
    style, script = ((_HERE / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>\n{style}</style>"),
    )
    page = tag(
        "body", tag("a", "Skip to content", class_="skip", href="#content"), *body, Markup(f"<script>{script}</script>")
    )
    return f"<!doctype html>\n{tag('html', head, page, lang='en')}\n"

"""Wikipedia's wikitext → paragraphs of clean prose, the way a language model should read them.

Only paragraphs survive: no headings, lists, tables, infoboxes, captions, formulas or references.
A paragraph that holds something unreadable (a formula, an unknown template) goes whole, since half a
sentence is no prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

# Cutting these sections, references and comments before parsing saves two thirds of the parser's time:
# they are an article's densest markup.
_HEADING = re.compile(r"^(={2,6})\s*(.+?)\s*\1\s*$", re.MULTILINE)
_APPARATUS = re.compile(
    r"see also|(general |explanatory |foot ?)?notes( and (references|citations|sources))?"
    r"|(general |cited )?references( and (notes|further reading))?|(external|web) links"
    r"|further (reading|information)|((select|selected|general) )?bibliography|(image )?gallery"
    r"|citations( and notes)?|((primary|secondary|cited) )?sources|works cited|publications|filmography",
    re.IGNORECASE,
)
_UNREAD = re.compile(r"<!--.*?-->|<ref\b[^>]*/>|<ref\b[^>]*>.*?</ref>|__[A-Z]+__", re.DOTALL | re.IGNORECASE)

_HOLE = "\0"  # stands where something unreadable was; its paragraph goes with it

_READ_TAGS = frozenset({"abbr", "b", "big", "blockquote", "center", "cite", "div", "em", "i", "p", "q", "s"})
_READ_TAGS |= {"small", "span", "strong", "sub", "sup", "u", "var", "section", "onlyinclude"}
_SILENT_TAGS = frozenset({"gallery", "imagemap", "ref", "references", "table", "timeline"})
_SILENT_LINKS = re.compile(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)?)\s*:", re.IGNORECASE)

# Editors' remarks, references and pronunciations: the sentence reads on without them.
_SILENT_TEMPLATES = re.compile(
    r"cite .*|citation.*|cn|fact|sfnp?|harv.*|rp|refn|efn|#tag:ref|ipa.*|respell|.*needed|clarify.*"
    r"|when|which|who|by whom|according to whom|vague|dubious|where|better source|failed verification"
    r"|verify .*|.*[- ]inline|unreliable.*|update after|inflation-fn|full|clear|anchor|flagicon"
    r"|use (dmy|mdy) dates|coord|oclc|isbn"
)
_SHOWN_ARGUMENT = {"lang": 2, "script": 2, "transl": 2, "nihongo": 1, "smaller": 1, "small": 1, "nowrap": 1}
_SHOWN_ARGUMENT |= {"vanchor": 1, "angbr": 1, "sc": 1, "midsize": 1, "rtl-lang": 2, "nobold": 1, "ill": 2}
_FIXED = {
    "'s": "'s",
    "'": "'",
    "' \"": "' \"",
    '-"': '"',
    "nbsp": " ",
    "spaces": " ",
    "thinsp": " ",
    "snd": " – ",
}
_FIXED |= {"mdashb": " — ", "mdash": " — ", "ndash": "–", "spaced ndash": " – ", "sup": "", "shy": ""}

_UNITS = {
    "C": "°C",
    "F": "°F",
    "K": "K",
    "acre": "acres",
    "ft": "feet",
    "in": "inches",
    "km2": "km²",
    "lb": "pounds",
}
_UNITS |= {
    "m2": "m²",
    "m3": "m³",
    "mi": "miles",
    "mi2": "square miles",
    "sqmi": "square miles",
    "yd": "yards",
}
_RANGES = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "to(-)": "–",
    "and": " and ",
    "and(-)": " and ",
    "or": " or ",
    "by": " by ",
    "x": " × ",
}

_TIDY = (
    (re.compile(r"'{2,5}"), ""),  # bold and italics
    (re.compile(r"\s+"), " "),
    (re.compile(r"\([;,:\s]+"), "("),  # what a silent template leaves at a bracket's start …
    (re.compile(r"[;,:\s]+\)"), ")"),  # … and at its end
    (re.compile(r"([;,])(\s*[;,])+"), r"\1"),
    (re.compile(r"\s?\(\s*(or|and)?\s*\)"), ""),
    (re.compile(r"\s+([,.;:!?])(?=\s|$)"), r"\1"),
)
_PROSE = re.compile(r"""["'“‘(]*[A-Z0-9À-Þ](?:(?!\[\[|\]\])[^{}|<>\0]){38,}[.!?]["'”’)]*""")


def prose(wikitext: str) -> str:
    """The paragraphs of an article as plain text, separated by blank lines; "" if there are none."""
    code = mwparserfromhell.parse(_body(_UNREAD.sub("", wikitext)), skip_style_tags=True)
    return "\n\n".join(filter(_PROSE.fullmatch, map(_tidy, _render(code.nodes).split("\n"))))


def _body(wikitext: str) -> str:
    """The article without the sections that hold references, links or lists of works."""
    kept: list[str] = []
    start, cut_level = 0, 0
    for heading in _HEADING.finditer(wikitext):
        level = len(heading[1])
        if cut_level and level > cut_level:
            continue  # a subsection of a section that is cut
        if not cut_level:
            kept.append(wikitext[start : heading.start()])
        start = heading.start()
        cut_level = level if _APPARATUS.fullmatch(heading[2]) else 0
    return "".join(kept) if cut_level else "".join(kept) + wikitext[start:]


def _tidy(paragraph: str) -> str:
    for pattern, replacement in _TIDY:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def _render(nodes: Iterable[Node]) -> str:
    return "".join(map(_render_node, nodes))


def _render_code(code: Wikicode | None) -> str:
    return "" if code is None else _render(code.nodes)


def _render_node(node: Node) -> str:
    match node:
        case Text():
            return str(node.value)
        case HTMLEntity():
            return str(node.normalize())
        case Wikilink():
            return "" if _SILENT_LINKS.match(str(node.title)) else _render_code(node.text or node.title)
        case ExternalLink():
            return _render_code(node.title)
        case Template():
            return _render_template(node)
        case Tag():
            return _render_tag(node)
        case Heading():
            return "\n"
        case _:  # comments and template arguments
            return ""


def _render_tag(tag: Tag) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return " "
    if name in _READ_TAGS:
        return _render_code(tag.contents)
    return "" if name in _SILENT_TAGS else _HOLE  # formulas, code, and the bullets of lists


def _render_template(template: Template) -> str:
    name = " ".join(str(template.name).lower().split())
    shown = [_render_code(p.value).strip() for p in template.params if not p.showkey]
    if name in _FIXED:
        return _FIXED[name]
    if _SILENT_TEMPLATES.fullmatch(name):
        return ""
    if name in ("convert", "cvt"):
        return _quantity(shown)
    if name == "as of" and shown:
        return f"{'as' if template.has('lc') else 'As'} of {shown[0]}"
    if name == "frac" and len(shown) == 2:
        return "/".join(shown)
    position = 1 if name.startswith("lang-") else _SHOWN_ARGUMENT.get(name, 0)
    return shown[position - 1] if 0 < position <= len(shown) else _HOLE


def _quantity(arguments: list[str]) -> str:
    """{{convert|5|to|10|km|mi}} → 5 to 10 km: the article's own unit, without the conversion."""
    text = ""
    for argument in arguments:
        if argument in _RANGES:
            text += _RANGES[argument]
        elif text and not argument[:1].isdigit():
            return f"{text} {_UNITS.get(argument, argument)}"
        else:
            text += argument
    return _HOLE

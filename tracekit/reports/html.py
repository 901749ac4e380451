"""One HTML file that needs nothing else: tables and the plot."""

from html import escape
from typing import Any

from tracekit.reports import svg
from tracekit.reports._section import Section
from tracekit.reports._sections import sections

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { padding: .2rem .8rem .2rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #ddd } td { font-variant-numeric: tabular-nums }
td:last-child { overflow-wrap: anywhere } svg { max-width: 100%; height: auto }
"""


def render(document: dict[str, Any]) -> bytes:
    """``document`` as a page with the plot in it."""
    name = escape(document["trace"]["source"]["name"])
    picture = svg.render(document).decode()
    first, *rest = map(_section, sections(document))
    body = "\n".join([f"<h1>tracekit: {name}</h1>", first, picture[picture.index("<svg") :], *rest])
    head = f'<meta charset="utf-8"><title>tracekit: {name}</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n{body}\n</body></html>\n".encode()


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in section.text)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header) if any(section.header) else ""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in section.rows)
    table = f"<table><tr>{head}</tr>\n{rows}</table>" if section.rows else ""
    return f"<h2>{escape(section.title)}</h2>{text}{table}"

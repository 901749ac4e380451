"""Markdown."""

from typing import Any

from tracekit.reports._section import Section
from tracekit.reports._sections import sections


def render(document: dict[str, Any]) -> bytes:
    """``document`` as a Markdown page."""
    parts = [f"# tracekit: {document['trace']['source']['name']}", *map(_section, sections(document))]
    return "\n\n".join(parts).encode() + b"\n"


def _section(section: Section) -> str:
    lines = [f"## {section.title}", *(f"\n{line}" for line in section.text)]
    if section.header:
        lines += ["", _row(section.header), _row(["---"] * len(section.header)), *map(_row, section.rows)]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

"""Plain text for a terminal."""

from typing import Any

from tracekit.reports._section import Section
from tracekit.reports._sections import sections


def render(document: dict[str, Any]) -> bytes:
    """``document`` as aligned text."""
    return "\n\n".join(map(_section, sections(document))).encode() + b"\n"


def _section(section: Section) -> str:
    lines = [section.title.upper(), *(f"  {line}" for line in section.text)]
    table = [section.header, *section.rows] if any(section.header) else section.rows
    # the last column is not padded: it may be long
    widths = [max(len(row[i]) for row in table) for i in range(len(section.header) - 1)] if table else []
    for row in table:
        cells = [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)

"""The one form of what reports say: a title, paragraphs and a table."""

from typing import NamedTuple

DASH = "–"


class Section(NamedTuple):
    """A title, a paragraph per line of text, and a table (empty header: none)."""

    title: str
    text: list[str]
    header: list[str]
    rows: list[list[str]]


def interval(values: dict[str, float] | None, scale: float = 1.0, digits: int = 3) -> str:
    """``median (low – high)``; a dash for none."""
    if values is None:
        return DASH
    low, median, high = (f"{values[end] / scale:.{digits}f}" for end in ("low", "median", "high"))
    return f"{median} ({low} {DASH} {high})"

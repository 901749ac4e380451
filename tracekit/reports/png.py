"""The plot as PNG."""

from typing import Any

from tracekit.reports._plot import save


def render(document: dict[str, Any]) -> bytes:
    """The plot of ``document`` as PNG."""
    return save(document, "png")

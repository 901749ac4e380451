"""The plot as SVG."""

from typing import Any

from tracekit.reports._plot import save


def render(document: dict[str, Any]) -> bytes:
    """The plot of ``document`` as SVG."""
    return save(document, "svg")

"""Data files that ship with the package: JSON Schemas, event variants, the demo capture.

They stand at the top of the repository (``schemas/``, ``fixtures/``). A wheel carries a copy inside the
package; an editable install and a checkout use the originals.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent / "_data"
_CHECKOUT = Path(__file__).parent.parent


def schemas() -> Path:
    """The folder ``schemas/``."""
    return _first(_PACKAGE / "schemas", _CHECKOUT / "schemas")


def demo_capture() -> Path:
    """The small real perf.data that ``tracekit demo`` replays."""
    return _first(_PACKAGE / "demo.perf.data", _CHECKOUT / "fixtures" / "demo.perf.data")


def _first(*candidates: Path) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"broken installation: none of {', '.join(map(str, candidates))} exists")

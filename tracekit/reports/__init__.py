"""Reports: one module per file suffix, each with ``render(document) -> bytes``; they compute nothing.

``document`` is the content of a summary.json (schemas/summary.schema.json).
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from tracekit import registry
from tracekit.errors import OutputError, UsageError


def render(document: dict[str, Any], suffix: str) -> bytes:
    """The report of ``document`` in the format of ``suffix`` (``md``, ``html``, …).

    Raises:
        UsageError: no report of that suffix; says which there are.
    """
    module = registry.load(__name__, suffix)
    rendered: bytes = module.render(document)
    return rendered


def check_suffix(out: Path) -> str:
    """The report that the suffix of ``out`` asks for: to be asked before the work, not only after it.

    Raises:
        UsageError: no suffix, or one that no report has.
    """
    suffix = out.suffix.removeprefix(".")
    if not suffix:
        raise UsageError(f"{out}: its suffix says what to write: .{', .'.join(registry.names(__name__))}")
    registry.load(__name__, suffix)
    return suffix


def write(document: dict[str, Any], out: Path) -> None:
    """Write the report that the suffix of ``out`` asks for.

    Raises:
        UsageError: no suffix, or one that no report has.
        OutputError: the file cannot be written.
    """
    content = render(document, check_suffix(out))
    scratch = out.with_name(f".{out.name}.part")
    try:
        scratch.write_bytes(content)
        scratch.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            scratch.unlink()

"""Cost tables: prices made elsewhere, with their source and machine (schemas/costs.schema.json)."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from tracekit import resources
from tracekit.costs.model import CostModel, Floats, Prices, uncertain
from tracekit.errors import UsageError
from tracekit.machine.timeline import Source

SCHEMA = "tracekit/costs/1"
_DEVIATIONS = 1.645  # from the middle to either end of a 90 % interval
_KEYS = {"schema", "name", "machine", "source", "overhead_ns", "price_ns"}


def names() -> list[str]:
    """The tables that come with tracekit."""
    return sorted(file.stem for file in (resources.schemas() / "costs").glob("*.toml"))


def is_table(path: Path) -> bool:
    """Whether ``path`` is to be read as a table: a .toml file, or the name of one that comes with tracekit."""
    return path.suffix == ".toml" or (str(path) in names() and not path.exists())


def read(path: Path) -> CostModel:
    """Read the table ``path``, see ``is_table``.

    Raises:
        UsageError: it cannot be read, or is no cost table; names the key and what is expected.
    """
    file = path if path.suffix == ".toml" else resources.schemas() / "costs" / f"{path}.toml"
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no cost table: {error}") from error
    wrong = sorted(content.keys() - _KEYS)
    if content.get("schema") != SCHEMA or wrong:
        found = f"unknown key {wrong[0]}" if wrong else f"schema is {content.get('schema')!r}"
        raise UsageError(f"{path}: no cost table: {found}; expected schema = {SCHEMA!r}, see schemas/costs")
    for key in ("name", "machine", "source"):
        if not isinstance(content.get(key), str):
            raise UsageError(f"{path}: {key} is missing: a price is worth nothing without it")
    overhead = _prices(path, "overhead_ns", content.get("overhead_ns", {}))
    if overhead and overhead.keys() != {"kprobe", "tracepoint"}:
        raise UsageError(f"{path}: overhead_ns has kprobe and tracepoint, not {', '.join(overhead)}")
    of_source = {
        source: overhead["tracepoint" if source == Source.TRACEPOINT else "kprobe"] for source in _SOURCES if overhead
    }
    how = f"table {content['name']}: {content['machine']}; {content['source']}"
    return CostModel(
        Prices(of_source, _prices(path, "price_ns", content.get("price_ns", {}))), 0.015, "table", {}, None, [how]
    )


_SOURCES = (Source.TRACEPOINT, Source.KPROBE, Source.KRETPROBE)


def _prices(path: Path, group: str, content: Any) -> dict[str, Floats]:  # noqa: ANN401 -- whatever TOML holds
    if not isinstance(content, dict):
        raise UsageError(f"{path}: {group} is {content!r}, not a table of prices")
    return {str(key): _price(f"{path}: {group}.{key}", value) for key, value in content.items()}


def _price(where: str, value: Any) -> Floats:  # noqa: ANN401 -- whatever TOML holds
    found = [value.get(end) for end in ("low", "median", "high")] if isinstance(value, dict) else []
    ends = [float(end) for end in found if isinstance(end, int | float) and 0 <= end < float("inf")]
    if len(ends) != len(("low", "median", "high")):
        raise UsageError(f"{where} is {value!r}, not {{low, median, high}} in nanoseconds")
    low, median, high = ends
    if not low <= median <= high:
        raise UsageError(f"{where}: expected low <= median <= high, found {low}, {median}, {high}")
    standard = uncertain(where, 0.0, 1.0) / _DEVIATIONS
    draws: Floats = median + np.where(standard < 0, standard * (median - low), standard * (high - median))
    return np.maximum(draws, 0.0)

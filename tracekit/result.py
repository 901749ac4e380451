"""A result: the summary of a replay with the operations and counts that it rests on (DESIGN.md §5)."""

import json
import shutil
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import polars as pl

from tracekit import resources
from tracekit.errors import OutputError, TableError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "summary.json"


class Result:
    """What ``tracekit replay`` found out.

    Attributes:
        document: the content of summary.json (schemas/summary.schema.json).
        operations: columns as ``machine.operations.SCHEMA``; None for a result read from its summary alone.
        counts: per policy, episode and operation, how often traced and under the policy; None likewise.
        proof: per policy and unsafe outcome, the event that shows it (``policies.Judgement.proof``); None: no such.
    """

    def __init__(
        self,
        document: dict[str, Any],
        operations: pl.DataFrame | None = None,
        counts: pl.DataFrame | None = None,
        proof: pl.DataFrame | None = None,
    ) -> None:
        self.document = document
        self.operations = operations
        self.counts = counts
        self.proof = proof

    def __repr__(self) -> str:
        names = ", ".join(policy["name"] for policy in self.document["policies"])
        return f"<Result of {self.document['trace']['source']['name']}: {names}>"

    @property
    def summary(self) -> pl.DataFrame:
        """One row per policy and call: policy, params, call, n, traced_ns, ratio low, median, high, reason."""
        rows = []
        for policy in self.document["policies"]:
            params = ",".join(f"{key}={value}" for key, value in policy["params"].items())
            for call in policy.get("calls", []):
                ratio = call["ratio"] or {}
                rows.append(
                    {
                        "policy": policy["name"],
                        "params": params,
                        "call": call["call"],
                        "n": call["n"],
                        "traced_ns": call["traced_ns"],
                        **{f"ratio_{end}": ratio.get(end) for end in ("low", "median", "high")},
                        "reason": call["reason"],
                    }
                )
        columns = {"policy": pl.String, "params": pl.String, "call": pl.String, "n": pl.Int64, "traced_ns": pl.Int64}
        ends = {f"ratio_{end}": pl.Float64 for end in ("low", "median", "high")}
        return pl.DataFrame(rows, schema={**columns, **ends, "reason": pl.String})

    def plot(self) -> "Figure":
        """VMA visits as traced and under each policy, and the predicted ratio of each call."""
        from tracekit.reports._plot import figure  # noqa: PLC0415 -- matplotlib takes half a second

        return figure(self.document)

    def write(self, out: Path, *, force: bool = False) -> None:
        """Write the result directory ``out``, whole or not at all.

        Raises:
            OutputError: it exists (and not ``force``, or it is no result), or cannot be written.
        """
        check_target(out, force=force)
        try:
            scratch = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
        try:
            new = scratch / "new"
            new.mkdir()
            (new / SUMMARY).write_text(json.dumps(self.document, indent=1) + "\n")
            for name, table in (("operations", self.operations), ("counts", self.counts), ("proof", self.proof)):
                if table is not None:
                    content = BytesIO()  # polars has no error of its own for a full disk
                    table.write_parquet(content, compression="zstd")
                    (new / f"{name}.parquet").write_bytes(content.getbuffer())
            if out.exists():
                out.rename(scratch / "old")  # goes with what is left of scratch
            new.rename(out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse to write a result over what must not be replaced: asked before the work, not only after it.

    Raises:
        OutputError: ``out`` exists, and not ``force``, or is no result.
    """
    if out.exists() and not force:
        raise OutputError(f"{out} exists; give another -o, or --force to replace it")
    if out.exists() and not (out / SUMMARY).is_file():
        raise OutputError(f"{out} exists and is no result; --force replaces results only, give another -o")


def open_result(path: Path) -> Result:
    """Read a result directory, or a summary.json alone.

    Raises:
        TableError: ``path`` is neither, or was damaged.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: not a result: {error}; make one with tracekit replay -o") from error
    schema = json.loads((resources.schemas() / "summary.schema.json").read_text())
    wanted = schema["properties"]["schema"]["const"]
    found = document.get("schema") if isinstance(document, dict) else None
    if found != wanted:
        raise TableError(f"{path}: not a result: schema is {found!r}, not {wanted!r}; make one with tracekit replay -o")
    lacking = [key for key in schema["required"] if key not in document]
    if lacking:
        raise TableError(f"{path}: not a result: it lacks {', '.join(lacking)}; make it anew with tracekit replay -o")
    return Result(
        document, *(_read_table(file.parent / f"{name}.parquet") for name in ("operations", "counts", "proof"))
    )


def _read_table(file: Path) -> pl.DataFrame | None:
    if not file.exists():
        return None
    try:
        return pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        problem = str(error).splitlines()[0]
        raise TableError(f"{file}: cannot be read: {problem}; make it anew with tracekit replay -o") from error

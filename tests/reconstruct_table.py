"""Compare reconstructed rmap walks with those that the probes recorded, and print what is right and what is not.

    python tests/reconstruct_table.py [--misses] FILE|TRACE_DIRECTORY ...

A walk is named by the first entry that it set or restored, which both sides saw. Its visits are right if there are as
many; its order is right if they are also in the same address spaces, at the same addresses, one after the other. Which
address space stands for which is learnt from the visits themselves.
"""

import collections
import sys
import tempfile
from pathlib import Path

import polars as pl

import tracekit
from tracekit.machine.reconstruct import reconstruct
from tracekit.machine.timeline import Kind, timeline
from tracekit.machine.walks import find_walks

VISITS = (Kind.TRY_VISIT, Kind.REMOVE_VISIT)


def walks_of(rows):
    """(kind, seq of its first entry) → its visits (mm, addr, whether it hit), its order, whether it is certain."""
    walks = find_walks(rows)
    frame = rows.with_columns(walk=pl.Series(walks.walk_of_row), visit=pl.Series(walks.visit_of_row))
    if "certainty" not in frame.columns:
        frame = frame.with_columns(certainty=pl.lit("observed"))
    hit = set(walks.visit_of_row.tolist())
    found, key_of = collections.defaultdict(list), {}
    sure, order = collections.defaultdict(lambda: True), {}
    columns = frame.with_row_index().filter(pl.col("walk") >= 0)
    for i, kind, walk, seq, mm, addr, certainty, size in columns.select(
        "index", "kind", "walk", "seq", "mm", "addr", "certainty", "order"
    ).iter_rows():
        if kind in VISITS:
            found[walk].append((mm, addr, i in hit))
            sure[walk] &= certainty != "inferred"
        elif kind in (Kind.SET, Kind.RESTORE):
            key_of.setdefault(walk, (Kind(kind).name, seq))
            order[walk] = max(order.get(walk, 0), size or 0)
    return {key_of[walk]: (found[walk], order[walk], sure[walk]) for walk in found if walk in key_of}


def names(pairs):
    """The real address space of each made one, by the visits. Kernels reuse the structs: several may have the same."""
    votes = collections.Counter()
    for real, made in pairs:
        for (mm, addr, hit), (other, at, struck) in zip(real, made, strict=False):
            votes[other, mm] += (addr == at) * (1 + 3 * (hit and struck))
    found = {}
    for (other, mm), _ in votes.most_common():
        found.setdefault(other, mm)
    return found


def compare(trace):
    """Row per walk: kind, order, visits recorded and made, visits and order right, certain."""
    real = walks_of(timeline(trace))
    made = reconstruct(trace, timeline(trace, probes=False))
    mine = walks_of(made.rows)
    same = names([(real[key][0], mine[key][0]) for key in real if key in mine])
    table = []
    for key, (visits, order, _) in real.items():
        other, _, sure = mine.get(key, ([], 0, False))
        ordered = [(mm, addr) for mm, addr, _ in visits] == [(same.get(mm), addr) for mm, addr, _ in other]
        table.append((*key, order, len(visits), len(other), len(visits) == len(other), ordered, sure))
    schema = ["kind", "seq", "order", "visits", "made", "visits_right", "order_right", "certain"]
    return pl.DataFrame(table, schema=schema, orient="row"), made.why, visits_of(timeline(trace)), visits_of(made.rows)


def visits_of(rows):
    """Visits in all, those of walks without an entry included: [try_to_migrate, remove_migration_ptes]."""
    return [int((rows["kind"] == kind).sum()) for kind in VISITS]


def open_any(path, scratch):
    path = Path(path)
    if (path / "manifest.json").exists():
        return tracekit.open(path)
    if path.is_dir():
        path = next(path / name for name in ("perf.data", "trace.dat") if (path / name).exists())
    return tracekit.ingest(path, Path(scratch) / "_".join(path.parts[-3:]).replace("/", "_"))


def line(path, table, why):
    """One line of the report."""
    n = len(table)
    if not n:
        return f"{path:<42} no walks"
    good, ordered, certain = (int(table[name].sum()) for name in ("visits_right", "order_right", "certain"))
    wrong = len(table.filter(pl.col("certain") & ~pl.col("order_right")))
    reasons = ", ".join(f"{reason} {count}" for reason, count in why.items())
    shares = f"{good:>6} {good / n:>6.1%} {ordered:>5} {ordered / n:>6.1%} {certain:>8} {wrong:>14}"
    return f"{path:<42} {n:>6} {shares}  {reasons}"


def main(arguments):
    titles = f"{'visits right':>13} {'order right':>12} {'certain':>8} {'certain, wrong':>14}"
    print(f"{'capture':<42} {'walks':>6} {titles}  why not certain")
    with tempfile.TemporaryDirectory() as scratch:
        for path in (argument for argument in arguments if not argument.startswith("--")):
            table, why, real, made = compare(open_any(path, scratch))
            print(
                line(path.rstrip("/")[-42:], table, why), "" if real == made else f"visits in all {real}, made {made}"
            )
            if "--misses" in arguments:
                with pl.Config(tbl_rows=40, tbl_cols=20):
                    print(table.filter(~pl.col("order_right")))


if __name__ == "__main__":
    main(sys.argv[1:])

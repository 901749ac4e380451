"""What a real family of processes did at random, probes hidden: each walk against the probes' record.

Recorded by tests/guest/family.c in the guest, all kinds of operations in one: mmap over mappings, of a file private and
shared, munmap, mprotect and writes that it forbids, madvise, mremap, forks of forks, exits, pages moved by either side;
with large folios all but those of files. And by tests/guest/hugezero.c, which reads, forks and writes.
"""

from pathlib import Path

import polars as pl
import pytest
from reconstruct_table import compare

import tracekit

FIXTURES = Path(__file__).parents[1] / "fixtures"
# One walk of 562 is of a page of the file that 245 read without a fault of its own: inferred, and wrong
WALKS = {"6.12-family": (530, 530), "7.2-family": (562, 561), "7.2-family-large": (744, 744), "7.2-hugezero": (24, 24)}


@pytest.mark.parametrize("name", WALKS)
def test_every_walk_is_as_the_probes_saw_it(name, tmp_path):
    table, *_ = compare(tracekit.ingest(FIXTURES / name / "trace.dat", tmp_path / "t"))
    assert (len(table), table["order_right"].sum()) == WALKS[name], table.filter(~pl.col("order_right"))
    assert table.filter(pl.col("certain") & ~pl.col("order_right")).is_empty(), "what is called certain is right"
    assert table["certain"].mean() > 0.7

"""MODEL.md E1: batched copies, each worked example through tracekit's front door; and the measured pairs."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import traces

import tracekit
from tracekit import policies, validation
from tracekit.errors import UsageError
from tracekit.policies import _speedup

TRUTH = Path(__file__).resolve().parents[2] / "shared" / "truth" / "2-batched-copy"
OWN = {
    "kprobes:folio_mc_copy_ret": traces.RETURN,
    "tlb:tlb_flush": {"reason": pl.Int32, "pages": pl.UInt64},
}


@pytest.fixture(autouse=True)
def _tables(monkeypatch):
    for name, fields in OWN.items():
        monkeypatch.setitem(traces.TABLES, name, fields)


class Move(traces.Script):
    """migrate_pages() of folios with known times: nothing passes but what ``wait`` says."""

    def __init__(self):
        super().__init__(step_ns=0)
        self.folio = 0x10_0000

    def wait(self, ns):
        self.now += ns

    def begin(self):
        self.enter("move_pages")
        self.start()

    def finish(self):
        self.end()
        self.exit("move_pages")

    def sources(self, orders):
        """(source, order) of so many new folios."""
        found = []
        for order in orders:
            found.append((self.folio, order))
            self.folio += 64 << order
        return found

    def unmap(self, folio, order, *, flush=False, addr=0x7000):
        self.add("kprobes:try_to_migrate", folio=folio)
        if flush:
            self.add("tlb:tlb_flush", reason=4, pages=1)
        self.visits("set", folio, [-1], order=order, addr=addr)

    def move(self, folio, order, addr=0x7000, **times):
        self.wait(times.get("m", 0))
        self.copy(folio, folio + (1 << 40))
        self.wait(times.get("c", 0))
        self.add("kprobes:folio_mc_copy_ret")
        self.add("kprobes:remove_migration_ptes", dst=folio + (1 << 40), src=folio)
        self.wait(times.get("r", 0))
        self.remove(folio + (1 << 40), [-1], order=order, addr=addr)

    def batch(self, orders, *, flush=False, u=0, **times):
        """Unmap all, move all: 6.3 and later."""
        folios = self.sources(orders)
        for place, (folio, order) in enumerate(folios):
            self.wait(u)
            self.unmap(folio, order, flush=flush, addr=0x1000 * (place + 1))
        for place, (folio, order) in enumerate(folios):
            self.move(folio, order, addr=0x1000 * (place + 1), **times)

    def one_by_one(self, orders, *, flush=False):
        """Move each before the next is unmapped: before 6.3."""
        for folio, order in self.sources(orders):
            self.unmap(folio, order, flush=flush)
            self.move(folio, order)


@pytest.fixture
def replayed(tmp_path):
    def of(script, *specs):
        return tracekit.replay(traces.write(tmp_path / "t", script.events), specs)

    return of


def counts(result, spec=None):
    policy = next(p for p in result.document["policies"][2:] if spec in (None, p["spec"]))
    return {op: (count["traced"], count["policy"]) for op, count in policy["operations"].items()}


def sizes(result, spec):
    """Pages of the folios of each batch."""
    judgement = policies.parse(spec)[1].judge(result.operations)
    at = (result.operations["op"] == "folio.copy").to_numpy()
    pages = (result.operations["bytes"].to_numpy()[at] / 4096).astype(int)
    batches = {}
    for batch, size in zip(judgement.batches.batch.tolist(), pages.tolist(), strict=True):
        batches.setdefault(batch, []).append(size)
    return list(batches.values())


@pytest.mark.parametrize("cut", ["traced", "including", "excluding"])
def test_e1_1_a_thousand_small_folios(cut, replayed):
    script = Move()
    script.begin()
    script.batch([0] * 512)
    script.batch([0] * 488)
    script.finish()
    spec = f"batched_copy:cut={cut}"
    result = replayed(script, spec)
    assert [len(batch) for batch in sizes(result, spec)] == [512, 488]
    made = counts(result)
    assert made["folio.copy"] == (1000, 0)
    assert made["folio.copy_batch"] == (0, 2)
    assert made["folio.copy_batched"] == (0, 1000)


def test_e1_1_where_each_was_flushed_by_itself(replayed):
    script = Move()
    script.begin()
    script.one_by_one([0] * 1000, flush=True)
    script.finish()
    made = counts(replayed(script, "batched_copy"))
    assert made["folio.copy"] == (1000, 0)
    assert made["folio.copy_batch"] == (0, 2)
    assert made["tlb.shootdown"] == (1000, 2)


def test_where_the_kernel_batches_its_flushes_they_stay(replayed):
    script = Move()
    script.begin()
    script.batch([0] * 5)
    script.add("tlb:tlb_flush", reason=4, pages=5)
    script.batch([0] * 5)
    script.finish()
    assert counts(replayed(script, "batched_copy:batch=1"))["tlb.shootdown"] == (1, 1)


ORDERS = (8, 8, 4, 9, 0)  # 256, 256, 16, 512, 1 pages


def test_e1_2_the_two_rules(replayed):
    script = Move()
    script.begin()
    script.batch(ORDERS)  # however it was cut
    script.finish()
    result = replayed(script, "batched_copy")
    assert sizes(result, "batched_copy:cut=including") == [[256, 256], [16, 512], [1]]
    assert sizes(result, "batched_copy:cut=excluding") == [[256, 256], [16], [512], [1]]
    assert sizes(result, "batched_copy:batch=1") == [[256], [256], [16], [512], [1]]
    assert sizes(result, "batched_copy:batch=1024") == [[256, 256, 16, 512], [1]]


def test_e1_2_the_rule_follows_from_how_the_kernel_moved_them(replayed):
    script = Move()
    script.begin()
    script.one_by_one(ORDERS)
    script.finish()
    assert sizes(replayed(script, "batched_copy"), "batched_copy") == [[256, 256], [16], [512], [1]]


def test_e1_2_the_worst_batch(replayed):
    script = Move()
    script.begin()
    script.batch([0] * 511 + [9])
    script.finish()
    result = replayed(script, "batched_copy")
    assert [sum(batch) for batch in sizes(result, "batched_copy:cut=including")] == [1023]
    assert [sum(batch) for batch in sizes(result, "batched_copy:cut=excluding")] == [511, 512]


def test_a_list_ends_with_its_call(replayed):
    script = Move()
    for _ in range(3):
        script.begin()
        script.batch([0] * 3)
        script.finish()
    assert sizes(replayed(script, "batched_copy:batch=512"), "batched_copy:batch=512") == [[1] * 3] * 3


def test_what_is_moved_alone_after_its_batch_is_no_batch_of_an_asynchronous_pass(replayed):
    script = Move()
    script.begin()
    script.batch([0] * 4)
    script.batch([0])
    script.batch([0])
    script.finish()
    made = replayed(script, "batched_copy:mode=async", "batched_copy:mode=any")
    assert counts(made, "batched_copy:mode=async")["folio.copy"] == (6, 2)
    assert counts(made, "batched_copy:mode=any")["folio.copy"] == (6, 0)
    assert counts(made, "batched_copy:mode=any")["folio.copy_batch"] == (0, 3)


def test_e1_3_retries(replayed):
    """ok, ok, always -EAGAIN, -EBUSY: the last is never unmapped, the third is put back where it was."""
    script = Move()
    script.begin()
    folios = script.sources([0] * 3)
    for folio, order in folios:
        script.unmap(folio, order)
    for folio, order in folios[:2]:
        script.move(folio, order)
    script.remove(folios[2][0], [-1])
    script.finish()
    posted, later = "batched_copy:order=after_metadata", "batched_copy:order=before_move"
    result = replayed(script, posted, later)
    assert counts(result, posted)["folio.copy_batched"] == (0, 2)
    # 1, 1, 10, 1 attempts become 1, 1, 11, 1
    assert counts(result, posted)["folio.move_attempt"] == (0, 1)
    assert "folio.move_attempt" not in counts(result, later)
    by_spec = {policy["spec"]: policy for policy in result.document["policies"]}
    succeeded = 2
    assert succeeded + by_spec[posted]["unsafe"]["folios_counted_twice_as_migrated"] == 4
    assert by_spec[later]["unsafe"] == {}


@pytest.fixture
def table(tmp_path):
    """A table in which any engine is ``speedup`` times as fast, and setup is nothing."""

    def of(speedup, share=1.0):
        throughput = 1 / ((1 - share) + share / speedup)
        lines = [
            "folio_bytes = [4096]\nbaseline = [1]\n[copy_share]\nfolio_bytes = [4096]",
            f"share = [{share}]\n[single]\nfolio_bytes = 2097152\nbaseline = 1\ncpu = 1\ndma = 1",
            *(f'[[engine]]\nname = "{e}"\nchannels = {n}\nthroughput = [{throughput if n > 1 else 1}]'
              for e in ("cpu", "dma") for n in (1, 4)),
        ]  # fmt: skip
        path = tmp_path / f"speedup-{speedup}.toml"
        path.write_text("\n".join(lines))
        return path

    return of


def e1_4(calls=3):
    """k = 4, m = 1, c = 10, r = 2 µs; three calls, for a price needs more than four gaps."""
    script = Move()
    for _ in range(calls):
        script.wait(5_000)
        script.begin()
        script.batch([0] * 4, m=1_000, c=10_000, r=2_000)
        script.finish()
    return script


def test_e1_4_time_blocked(replayed, table):
    one, four = "batched_copy:threads=1", f"batched_copy:threads=4,speedup={table(4)}"
    result = replayed(e1_4(), one, four)
    by_spec = {policy["spec"]: policy["blocking"] for policy in result.document["policies"][2:]}

    def times(spec, side):
        found = by_spec[spec]
        assert found["reason"] is None
        assert (found["folios"], found["batches"]) == (12, {"traced": 3, "policy": 3})
        return {what: found[what][side]["median"] / 1000 for what in ("total_ns", "first_ns", "sum_ns", "worst_ns")}

    for spec in (one, four):  # 13, 26, 39, 52
        assert times(spec, "traced") == {"total_ns": 3 * 52, "first_ns": 13, "sum_ns": 3 * 130, "worst_ns": 52}
    # 46, 48, 50, 52
    assert times(one, "policy") == {"total_ns": 3 * 52, "first_ns": 46, "sum_ns": 3 * 196, "worst_ns": 52}
    # 16, 18, 20, 22
    assert times(four, "policy") == {"total_ns": 3 * 22, "first_ns": 16, "sum_ns": 3 * 76, "worst_ns": 22}


def test_folios_wait_for_those_unmapped_after_them_in_their_batch(replayed):
    script = Move()
    for _ in range(3):
        script.begin()
        script.batch([0] * 4, u=5_000, m=1_000, c=10_000, r=2_000)
        script.finish()
    whole, single = "batched_copy:threads=1", "batched_copy:threads=1,batch=1"
    result = replayed(script, whole, single)
    found = {policy["spec"]: policy["blocking"] for policy in result.document["policies"][2:]}
    assert found[whole]["first_ns"]["traced"]["median"] == 1000 * (3 * 5 + 13)
    assert found[whole]["first_ns"]["policy"]["median"] == 1000 * (3 * 5 + 46)
    assert found[whole]["worst_ns"]["policy"]["median"] == 1000 * (3 * 5 + 46), (
        "the last waits for copies, not for them"
    )
    assert found[single]["first_ns"]["policy"]["median"] == 1000 * 13


def test_copied_before_the_move_the_others_metadata_do_not_delay_the_first(replayed):
    spec = "batched_copy:threads=1,order=before_move"
    found = replayed(e1_4(), spec).document["policies"][-1]["blocking"]
    # copies 40, then 43, 46, 49, 52
    waits = [40 + 3 * n for n in (1, 2, 3, 4)]
    assert found["first_ns"]["policy"]["median"] == 1000 * waits[0]
    assert found["sum_ns"]["policy"]["median"] == 3 * 1000 * sum(waits)


def test_smaller_batches_wait_less_and_pay_their_setup_more_often(replayed):
    specs = [f"batched_copy:threads=1,setup_ns=500,batch={pages}" for pages in (1, 2, 4)]
    found = [policy["blocking"] for policy in replayed(e1_4(), *specs).document["policies"][2:]]
    assert [one["batches"]["policy"] for one in found] == [12, 6, 3]
    # no flush of the TLB takes time here, so what a batch costs is its setup
    assert [one["total_ns"]["policy"]["median"] for one in found] == [156_000 + 500 * n for n in (12, 6, 3)]
    assert [one["first_ns"]["policy"]["median"] for one in found] == [13_500, 24_500, 46_500]


@pytest.mark.parametrize(("share", "most"), [(0.35, 1.54), (0.66, 2.9), (0.97, 33)])
def test_e1_5_amdahl(share, most, replayed):
    result = replayed(amdahl(share), "batched_copy")
    bound = next(policy for policy in result.document["policies"] if policy["name"] == "upper_bound")
    (call,) = bound["calls"]
    assert 1 / call["ratio"]["median"] == pytest.approx(most, rel=0.02)


def test_e1_5_with_a_speedup_of_7_5(replayed, table):
    spec = f"batched_copy:engine=dma,channels=4,setup_ns=0,speedup={table(7.5, 0.97)}"
    (call,) = replayed(amdahl(0.97), spec).document["policies"][-1]["calls"]
    assert 1 / call["ratio"]["median"] == pytest.approx(6.3, rel=0.01)


def amdahl(share):
    """Calls in which ``share`` of the time is copying."""
    script = Move()
    for _ in range(3):
        script.wait(5_000)
        script.begin()
        script.batch([0] * 4, m=round((1 - share) * 100_000), c=round(share * 100_000))
        script.finish()
    return script


def test_the_table_that_comes_with_tracekit():
    table = _speedup.load(None)
    sizes = np.array([4096, 65536, 2**21])
    one = table.of("cpu", sizes, np.ones(3, dtype=int))
    assert one[1].tolist() == [1, 1, 1], "one CPU copies what one CPU copied"
    dma = table.of("dma", sizes, np.full(3, 16))
    # MODEL.md A.2: 512 x 2M by DMA, copies measured as 7.5 times as fast
    assert dma[1, 2] == pytest.approx(7.5, rel=0.07)
    assert table.of("dma", sizes[:1], np.array([1]))[1, 0] < 1, "a single channel is slower than a CPU at 4K"
    for engine in ("cpu", "dma"):
        for channels in (1, 2, 4, 7, 16, 64):
            low, best, high = table.of(engine, sizes, np.full(3, channels))
            assert (low <= best).all()
            assert (best <= high).all()
            assert (low > 0).all()
    assert table.of("cpu", np.empty(0, dtype=int), np.empty(0, dtype=int)).shape == (3, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("x = [", "is no table of speed-ups"),
        ("x = 1", "lacks 'folio_bytes'"),
        ("folio_bytes = [2, 1]", "folio_bytes does not rise"),
        ("folio_bytes = [4096]\nbaseline = [0]", "baseline is not 1 numbers above 0"),
        ("folio_bytes = 4096", "is no table of speed-ups"),
    ],
)
def test_a_table_that_is_none_is_refused_before_anything_is_replayed(text, words, tmp_path):
    path = tmp_path / "t.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as error:
        policies.expand(f"batched_copy:speedup={path}")
    assert str(path) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("params", ["engine=dma,threads=4", "channels=4"])
def test_threads_are_cpus_and_channels_are_dma(params):
    with pytest.raises(UsageError, match="batched_copy: "):
        policies.expand(f"batched_copy:{params}")


def test_without_probes_of_the_walks_sizes_are_not_known_and_nothing_is_judged(tmp_path):
    events = [e for e in e1_4().events if not e.name.startswith(("kprobes:try", "kprobes:remove"))]
    always = ["migrate:set_migration_pte", "migrate:remove_migration_pte"]
    result = tracekit.replay(traces.write(tmp_path / "t", events, always=always), ["batched_copy"])
    policy = result.document["policies"][-1]
    assert policy["operations"]["folio.copy"] == {"traced": 12, "policy": 12}
    assert policy["open"] == {"copies_of_unknown_size": 12}
    assert policy["blocking"]["reason"]


@pytest.mark.skipif(not TRUTH.is_dir(), reason="the shared measurements are not here")
def test_the_measured_pairs():
    rows = validation.validate([TRUTH])
    assert len(rows) == 2
    for row in rows:
        assert row.error is not None
        assert row.error < 1
        assert row.covered


@pytest.mark.skipif(not TRUTH.is_dir(), reason="the shared measurements are not here")
@pytest.mark.parametrize("config", ["copy-4k", "copy-64k"])
def test_operations_are_those_that_the_kernel_counted(config):
    spec = json.loads((TRUTH / config / "spec.json").read_text())["predictions"][0]
    result = tracekit.replay(TRUTH / config / spec["trace"], [spec["policy"]])
    (call,) = (c for c in result.document["policies"][-1]["calls"] if c["call"] == spec["call"])
    made = call["operations"]
    kernel = Counter(spec["operations_per_call"]["policy"])
    # the trace holds half as many pages per call as the counted one; its own number of calls beside
    folios = made["folio.copy"]["traced"] / call["n"]
    scale = kernel["copy_batched"] / folios
    assert made["folio.copy"]["policy"] == kernel["copy_one"]
    assert made["folio.copy_batched"]["policy"] / call["n"] * scale == kernel["copy_batched"]
    if scale == 1:
        assert made["folio.copy_batch"]["policy"] / call["n"] == kernel["copy_batch"]


def test_folios_that_fill_a_batch_each_do_not_tell_how_it_was_cut(replayed):
    """Two of 2 MiB, one after the other: so cut 6.3 and later, too."""
    script = Move()
    script.begin()
    script.batch([9])
    script.batch([9])
    script.finish()
    result = replayed(script, "batched_copy")
    assert sizes(result, "batched_copy") == [[512], [512]]
    assert sizes(result, "batched_copy:batch=1000") == [[512, 512]], "including what brings it there"


def test_flushes_of_one_processor_stay(replayed):
    script = Move()
    script.begin()
    for folio, order in script.sources([0] * 4):
        script.add("tlb:tlb_flush", reason=2, pages=1)
        script.unmap(folio, order)
        script.move(folio, order)
    script.finish()
    made = counts(replayed(script, "batched_copy"))
    assert made["tlb.flush"] == (4, 4)
    assert "tlb.shootdown" not in made

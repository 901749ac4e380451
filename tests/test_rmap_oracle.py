"""The oracle itself: walks written by hand after MODEL E0, and what real captures must give."""

import json
import lzma
from pathlib import Path

import pytest
import rmap_oracle

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ODD_COMM = "a 1/2 - x:y: 3"  # 14 of the 15 bytes that a comm may have


def line(event, comm="forkcow", pid=7, tid=7):
    return f"{comm:>16} {pid:>6}/{tid:<6} [000]     1.000000001: {event}\n"


def probe(name, folio, vma=None):
    visit = f" vma={0x100 + vma:#x} addr=0x7000 mm={0x200 + vma:#x} tgid=7" if vma is not None else ""
    return f"kprobes:{name}: (ffffffff81729494) folio={folio:#x}{visit}"


def entry(name, order=0):
    return f"migrate:{name}_migration_pte: addr=7000, pte=dfffe7fffef64a02 order={order}"


def visits(name, event, folio, vmas, order=0):
    """One probe per VMA of `vmas`, counted from 1; the tracepoint follows where the number is negative."""
    for vma in vmas:
        yield probe(name, folio, abs(vma) - 1)
        if vma < 0:
            yield entry(event, order)


def migration(tried, removed, src=0x1000, dst=0x2000, order=0):
    """Trace one folio: its walks as VMA numbers from 1, negative where the VMA holds an entry."""
    yield probe("try_to_migrate", src)
    yield from visits("try_to_migrate_one", "set", src, tried, order)
    if dst != src:
        yield f"kprobes:folio_mc_copy: (ffffffff816d7034) dst={dst:#x} src={src:#x}"
    yield from visits("remove_migration_pte", "remove", dst, removed, order)


def judge(events, **kwargs):
    walks, strays = rmap_oracle.read_walks([line(event, **kwargs) for event in events])
    assert strays == 0
    return rmap_oracle.counter_early_exit_visits(walks), rmap_oracle.count_entries(walks), walks


@pytest.mark.parametrize(
    ("example", "tried", "removed", "policy", "entries"),
    [
        ("E0.1", [-1], [-1, 2, 3, 4, 5], 1, {"copied": 0, "zapped": 0}),
        ("E0.2", [1, -2, -3, -4], [1, -2, -3, -4], 4, {"copied": 0, "zapped": 0}),
        ("E0.2b", [-1, 2, -3], [-1, 2, -3, 4], 3, {"copied": 0, "zapped": 0}),
        ("E0.4", [-1], [-1, -2], 2, {"copied": 1, "zapped": 0}),
        ("E0.6", [-1, -2, -3], [-1, -2, 3], 2, {"copied": 0, "zapped": 1}),
        ("E0.7", [-1, -2, -3], [1, 2, 3], 1, {"copied": 0, "zapped": 3}),
    ],
)
def test_examples_of_the_model(example, tried, removed, policy, entries):
    left, counts, walks = judge(migration(tried, removed))
    assert [len(walk.visits) for walk in walks] == [len(tried), len(removed)], example
    assert left == [policy]
    assert counts.items() >= entries.items()


def test_undo_and_large_folios_keep_their_visits():
    assert judge(migration([-1], [-1, 2, 3], dst=0x1000))[0] == [3]  # E0.8
    assert judge(migration([-1], [-1, 2, 3], order=4))[0] == [3]  # E0.13


def test_pages_split_off_are_no_migration():
    events = [*migration([-1], [-1, 2], dst=0x1000, order=2)]
    events += visits("remove_migration_pte", "remove", 0x1040, [-1, 2])
    left, _, walks = judge(events)
    assert left == [2, 2]
    assert [walk.undo for walk in walks] == [False, True, True]


def test_without_a_probe_on_the_copy_folios_pair_in_order():
    tries = [*migration([-1], [], 0x1000), *migration([-1], [], 0x3000)]
    removes = [*migration([], [-1, 2], 0x1000, 0x2000), *migration([], [-1, 2], 0x3000, 0x4000)]
    events = [event for event in tries + removes if "folio_mc_copy" not in event]
    events = [event for event in events if "try_to_migrate:" not in event]
    _, _, walks = judge(events)
    assert [walk.src for walk in walks if walk.kind == "remove"] == [0x1000, 0x3000]


def test_tasks_do_not_mix_and_a_comm_may_hold_anything():
    one, other = list(migration([-1], [-1, 2])), list(migration([1, -2], [1, -2, 3], 0x5000, 0x6000))
    lines = []
    for at in range(max(len(one), len(other))):
        lines += [line(event) for event in one[at : at + 1]]
        lines += [line(event, comm=ODD_COMM, tid=8) for event in other[at : at + 1]]
    walks, strays = rmap_oracle.read_walks(lines)
    assert strays == 0
    assert rmap_oracle.counter_early_exit_visits(walks) == [1, 2]
    assert {walk.tid for walk in walks} == {7, 8}


def test_an_entry_that_no_visit_explains_is_counted():
    assert rmap_oracle.read_walks([line(entry("set"))]) == ([], 1)


@pytest.mark.parametrize("packed", [False, True])
def test_text_is_read_plain_or_packed(tmp_path, packed):
    path = tmp_path / ("oracle.txt.xz" if packed else "oracle.txt")
    with (lzma.open if packed else open)(path, "wt") as out:
        out.writelines(line(event) for event in migration([-1], [-1, 2]))
    assert rmap_oracle.summarize(path)["policy_visits"] == 1


def test_every_child_that_copied_is_a_visit_saved():
    truth = json.loads((FIXTURES / "demo.truth.json").read_text())
    found = rmap_oracle.summarize(FIXTURES / "demo.oracle.script.txt.xz")
    assert found["remove_visits"] == truth["pages"] * truth["expected_anon_vmas_in_tree"] == 272
    assert found["policy_visits"] == found["hits"] == found["restored"] == truth["pages"] == 16
    assert found["strays"] == found["undo"] == found["unpaired"] == 0

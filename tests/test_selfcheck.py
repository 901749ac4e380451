"""The self-check: exact on real captures, and over its threshold as soon as trace and machine disagree."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tracekit
from tracekit import reports
from tracekit.machine.replay import replay
from tracekit.machine.selfcheck import Check, document, self_check
from tracekit.machine.selfcheck.counters import counters

SHARED = Path(__file__).parents[2] / "shared" / "captures"
# capture → what each check compared and found equal; the others cannot be made there
FIXTURES = {
    "demo": {"walk.visits": 32, "migration_entry.fate": 32, "migrate_pages.pages": 16},
    "6.12-forkcow-c4-all": {
        "migration_entry.fate": 1110,
        "migrate_pages.pages": 267,
        "rss.address_space": 137,
        "rss.fork": 4,
        "rss.fault": 85,
        "rss.migration": 1,
        "rss.exit": 17,
    },
    "7.2-rec-lost": {"rss.address_space": 7, "rss.fault": 3},  # what lies between losses
    "forkmig-zapped": {"migration_entry.fate": 382, "migrate_pages.pages": 101},
    "thp-split": {"migration_entry.fate": 192, "migrate_pages.pages": 64},
}


def made(checks: list[Check]) -> dict[str, int]:
    """What was compared by the checks that could be made, all of it equal."""
    assert {check.status for check in checks} <= {"ok", "not possible"}
    assert all(check.reason for check in checks if check.status == "not possible")
    return {check.name: check.compared for check in checks if check.compared == check.equal > 0}


@pytest.mark.parametrize("name", FIXTURES)
def test_what_the_captures_show_is_what_the_machine_says(name: str, ingested: Callable[[str], Any]) -> None:
    trace = ingested(name)
    assert made(self_check(trace, replay(trace))) == FIXTURES[name]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared captures are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "file", "pages", "moved"),
    [
        # succeeded and failed of mm_migrate_pages, as perf script and trace-cmd report print them
        ("7.2/mthp64-partial.tc", "trace.dat", 256, "migrate_pages.pages"),  # 192 of them freed by splits
        ("7.2/pinned-vmsplice.perf", "perf.data", 337 + 48, "migrate_pages.pages"),
        ("7.2/compact.perf", "perf.data", 64, "migrate_pages.bound"),
        ("7.2/numab.perf", "perf.data", 1039, "migrate_pages.pages"),
        # the task's first walk stands before any record of the timeline that says where it was
        ("6.12/lazyfree64-redirty.perf", "perf.data", 390, "migration_entry.fate"),
    ],
)
def test_pages_moved(name: str, file: str, pages: int, moved: str, tmp_path: Path) -> None:
    trace = tracekit.ingest(SHARED / name / file, tmp_path / "trace")
    assert made(self_check(trace, replay(trace)))[moved] == pages


def test_bytes_of_rss_stat_are_pages_of_the_machine(ingested: Callable[[str], Any], tmp_path: Path) -> None:
    trace = ingested("6.12-forkcow-c4-all")
    larger = tampered(trace, tmp_path / "trace", "kmem:rss_stat", lambda t: t.with_columns(size=pl.col("size") * 16))
    larger.manifest["machine"]["page_size"] = 65536
    assert counters(larger)["pages"].equals(counters(trace)["pages"])


# --- a trace that says otherwise is found out ---


def tampered(trace: Any, folder: Path, event: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Any:
    """A copy of ``trace`` in which the table of ``event`` is changed."""
    shutil.copytree(trace.path, folder)
    file = folder / "events" / f"{event.replace(':', '/')}.parquet"
    change(pl.read_parquet(file)).write_parquet(file)
    return tracekit.open(folder)


def status(trace: Any) -> dict[str, str]:
    return {check.name: check.status for check in self_check(trace, replay(trace))}


def size_of_child(table: pl.DataFrame) -> pl.DataFrame:
    """Of everything counted for an mm that is not the counter's own, and anonymous, one page more."""
    counted = (pl.col("curr") == 0) & (pl.col("member") == 1)
    return table.with_columns(size=pl.when(counted).then(pl.col("size") + 4096).otherwise("size"))


@pytest.mark.parametrize(
    ("event", "change", "over"),
    [
        (
            "migrate:mm_migrate_pages",
            lambda t: t.with_columns(succeeded=pl.col("succeeded") - 4),
            "migrate_pages.pages",
        ),
        ("migrate:mm_migrate_pages", lambda t: t.with_columns(failed=pl.col("failed") + 4), "migrate_pages.pages"),
        ("migrate:remove_migration_pte", lambda t: t.gather_every(2), "migration_entry.fate"),
        (
            "kmem:rss_stat",
            lambda t: t.with_columns(mm_id=pl.col("mm_id") + pl.int_range(pl.len()) % 2),
            "rss.address_space",
        ),
        ("kmem:rss_stat", size_of_child, "rss.fork"),
        ("kmem:rss_stat", size_of_child, "rss.exit"),
        ("kmem:rss_stat", lambda t: t.with_columns(size=pl.col("size") * 3), "rss.fault"),
    ],
)
def test_a_trace_that_says_otherwise_is_over(
    event: str, change: Any, over: str, ingested: Callable[[str], Any], tmp_path: Path
) -> None:
    trace = ingested("6.12-forkcow-c4-all")
    assert status(trace)[over] == "ok"
    assert status(tampered(trace, tmp_path / "trace", event, change))[over] == "over"


def test_a_counter_that_changes_while_pages_migrate_is_over(ingested: Callable[[str], Any], tmp_path: Path) -> None:
    trace = ingested("6.12-forkcow-c4-all")
    call = trace.events("migrate:mm_migrate_pages").collect()

    def inside(table: pl.DataFrame) -> pl.DataFrame:
        moved = call.select(pl.col("time_ns") - 1, "tid", "common_pid")
        return pl.concat([table.head(-1), table.tail(1).drop(moved.columns).hstack(moved).select(table.columns)])

    assert status(tampered(trace, tmp_path / "trace", "kmem:rss_stat", inside))["rss.migration"] == "over"


def test_a_visit_that_was_not_recorded_is_over(ingested: Callable[[str], Any], tmp_path: Path) -> None:
    trace = ingested("demo")
    fewer = tampered(
        trace, tmp_path / "trace", "kprobes:remove_migration_pte", lambda t: t.filter(pl.col("seq") % 17 != 0)
    )
    assert status(fewer)["walk.visits"] == "over"


def test_a_result_that_is_over_says_so_in_the_first_lines_of_every_report(
    ingested: Callable[[str], Any], tmp_path: Path
) -> None:
    trace = ingested("demo")
    wrong = tampered(
        trace,
        tmp_path / "trace",
        "migrate:mm_migrate_pages",
        lambda t: t.with_columns(succeeded=pl.col("succeeded") + 100),
    )
    for one, failed in ((trace, False), (wrong, True)):
        summary = tracekit.replay(one, []).document
        assert summary["self_check"]["status"] == ("over" if failed else "ok")
        for suffix in ("txt", "md", "html"):
            text = reports.render(summary, suffix).decode()
            before_any_number = text[: text.index("Ratio: predicted")]
            assert ("SELF-CHECK FAILED" in before_any_number) is failed
            assert "migrate_pages.pages" in text
        assert json.loads(reports.render(summary, "json"))["self_check"] == summary["self_check"]


def test_the_worst_check_speaks_for_all() -> None:
    good, bad = Check("a.b", "", 100, 100, 0.01), Check("a.c", "", 100, 98, 0.01)
    edge, none = Check("a.d", "", 100, 99, 0.0100001), Check("a.e", "", 0, 0, 0.01, "needs rss_stat")
    assert [one.status for one in (good, bad, edge, none)] == ["ok", "over", "ok", "not possible"]
    assert document([none, good, bad])["status"] == "over"
    assert document([none, good])["status"] == "ok"
    assert document([none])["status"] == "not possible"
    assert document([none])["checks"][0]["residual"] is None

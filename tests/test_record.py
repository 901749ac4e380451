"""tracekit record and doctor: the plan for a machine, the gate, the snapshot; what needs root is faked or left out."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

import tracekit
from tracekit import doctor, inspect, record, resources, schema, snapshot
from tracekit.errors import OutputError, TraceFormatError, UsageError
from tracekit.profiles import EVENTS, PROBES, PROFILES
from tracekit.record import plan, proc, system
from tracekit.record.pageflags import PageFlags

ROOT = Path(__file__).parents[1]
FORMATS = ROOT.parent / "shared" / "captures" / "formats"
VISIT = "folio=folio:x64 vma=vma:x64 addr=address:x64 mm=vma->vm_mm:x64"


def machine(tracefs: Path | None, **changes: Any) -> system.System:
    """One that can do everything, but for ``changes``."""
    able = {"release": "7.2.0", "arch": "x86_64", "root": True, "perf": "6.12", "trace_cmd": "3.3"}
    return system.System(**{**able, "tracefs": tracefs, "kprobes": True, "btf": True, "graph": True, **changes})


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    """Two events and two functions, one of which the compiler has cut."""
    folder = tmp_path / "tracing"
    for event in ("migrate/set_migration_pte", "syscalls/sys_enter_munmap"):
        (folder / "events" / event).mkdir(parents=True)
    (folder / "available_filter_functions").write_text("try_to_migrate\ntry_to_unmap_one.isra.0 [mm]\nother\n")
    (folder / "kprobe_events").touch()
    return folder


@pytest.fixture(autouse=True)
def small_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of this process and its parent alone: the whole one may be of thousands."""
    folder = tmp_path / "proc"
    folder.mkdir()
    for pid in (os.getpid(), os.getppid()):
        (folder / str(pid)).symlink_to(f"/proc/{pid}")
    monkeypatch.setattr(proc, "PROC", folder)
    return folder


# --- the plan ---


def test_only_what_the_kernel_has_is_recorded(tracefs: Path) -> None:
    made = plan.make(machine(tracefs), "rmap", Path("x.data"))
    chosen = [made.command[i + 1] for i, word in enumerate(made.command) if word == "-e"]
    assert chosen[:2] == ["migrate:*", "syscalls:sys_enter_munmap"]
    assert [lines[0] for lines in made.probes] == [
        "p:kprobes/try_to_migrate try_to_migrate folio=folio:x64",
        "r:kprobes/try_to_migrate_ret try_to_migrate",
        f"p:kprobes/try_to_unmap_one try_to_unmap_one.isra.0 {VISIT}",
    ]
    assert made.probes[2][1].endswith("folio=$arg1:x64 vma=$arg2:x64 addr=$arg3:x64 mm=+16($arg2):x64")
    assert {"sched:sched_process_fork", "folio_mc_copy"} <= set(made.left_out)


def test_light_has_the_probes_that_see_a_folio_once_where_the_kernel_takes_any(tracefs: Path) -> None:
    able, unable = (plan.make(machine(tracefs, kprobes=yes), "light", Path("x")) for yes in (True, False))
    assert [lines[0] for lines in able.probes] == ["p:kprobes/try_to_migrate try_to_migrate folio=folio:x64"]
    assert unable.probes == []
    assert "kprobes:try_to_migrate" not in unable.command


def test_without_btf_arguments_go_by_place(tracefs: Path) -> None:
    made = plan.make(machine(tracefs, btf=False), "rmap", Path("x.data"))
    assert made.probes[0] == ["p:kprobes/try_to_migrate try_to_migrate folio=$arg1:x64"]


@pytest.mark.parametrize(
    ("profile", "changes", "says"),
    [
        ("light", {"root": False}, "root"),
        ("light", {"perf": None, "trace_cmd": None}, "no trace-cmd; install"),
        ("light", {"tracefs": None}, "mount -t tracefs"),
        ("rmap", {"kprobes": False}, "CONFIG_KPROBE_EVENTS"),
        ("graph", {"graph": False}, "CONFIG_FUNCTION_GRAPH_TRACER"),
    ],
)
def test_what_is_in_the_way_is_said_with_what_to_do(profile: str, changes: Any, says: str, tracefs: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        plan.make(machine(**{"tracefs": tracefs, **changes}), profile, Path("x"))
    assert "\n" not in str(caught.value)


def test_the_shell_commands_define_record_and_take_away(tracefs: Path) -> None:
    made = plan.make(machine(tracefs), "rmap", Path("a b.data"))
    lines = made.shell(["prog", "an arg"], tracefs).splitlines()
    assert lines[0].startswith("echo 'p:kprobes/try_to_migrate try_to_migrate folio=folio:x64' >> ")
    assert "perf record -a -k mono" in lines[3]
    assert lines[3].endswith("-- prog 'an arg'")
    assert "'a b.data'" in lines[3]
    assert lines[4:] == [
        f"echo -:kprobes/{name} >> {tracefs}/kprobe_events"
        for name in ("try_to_migrate", "try_to_migrate_ret", "try_to_unmap_one")
    ]


def test_trace_cmd_where_there_is_no_perf_and_for_graphs(tracefs: Path) -> None:
    light = plan.make(machine(tracefs, perf=None, kprobes=False), "light", Path("x")).command
    assert light[:2] == ["trace-cmd", "record"]
    assert light[-4:] == ["-e", "migrate", "-e", "syscalls:sys_enter_munmap"]
    assert light[light.index("-C") + 1] == "mono"
    graph = plan.make(machine(tracefs), "graph", Path("x")).command
    assert graph[graph.index("-g") + 1] == "migrate_pages"
    assert "-C" not in graph, "function_graph would trace what reads the clock"


READ = [probe for probe in PROBES if not probe.name.startswith("rmap_walk")]  # those are for prices only


@pytest.mark.parametrize("probe", READ, ids=lambda probe: probe.name)
def test_every_probe_has_the_arguments_that_some_variant_reads(probe: Any) -> None:
    variants = [one for group in schema.variants().values() for one in group if f"kprobes:{probe.name}" in one.names]
    for btf in (True, False):
        line = probe.definitions(probe.function, btf=btf)[0]
        fields = {word.partition("=")[0] for word in line.split()[2:]} | (
            {"__probe_ret_ip"} if line[0] == "r" else set()
        )
        assert any(one.fits(fields) for one in variants), f"{line} fits no variant"


@pytest.mark.skipif(not FORMATS.exists(), reason="the shared formats are not beside the checkout")
@pytest.mark.parametrize("release", ["6.12.107", "7.2.13", "7.3.4"])
def test_kernels_have_the_events(release: str) -> None:
    folder = next(path for path in (FORMATS / release, FORMATS / release / "formats") if (path / "migrate").exists())
    lacking = [
        event
        for event in EVENTS
        if not (event.startswith("syscalls:") or list(folder.glob(f"{event.replace(':', '/')}*")))
    ]
    assert lacking == []


# --- running it ---


@pytest.fixture
def fake(tmp_path: Path, tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A perf that runs the program behind ``--`` and writes what it was told."""
    file = tmp_path / "bin" / "perf"
    file.parent.mkdir()
    file.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nat = sys.argv.index('--')\n"
        "open(sys.argv[sys.argv.index('-o') + 1], 'w').write(' '.join(sys.argv))\n"
        "sys.exit(subprocess.run(sys.argv[at + 1:]).returncode)\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(system, "look", lambda: machine(tracefs))
    return tmp_path


def test_the_program_runs_after_the_snapshot(fake: Path) -> None:
    out = fake / "x.data"
    touch = "import os, sys, time; open(sys.argv[1], 'w').write(str(time.monotonic_ns())); sys.exit(7)"
    made = record.record("light", out, [sys.executable, "-c", touch, str(fake / "ran")], None, None)
    assert (made.status, made.out) == (7, out)
    assert "migrate:*" in out.read_text()
    taken = json.loads(snapshot.beside(out).read_text())
    assert taken["end_ns"] <= int((fake / "ran").read_text())
    assert sorted(path.name for path in fake.iterdir() if path.name.startswith((".x", "x"))) == [
        "x.data",
        "x.data.snapshot.json",
    ]


def test_calibration_records_the_same_once_more_with_the_probes_of_every_visit(fake: Path, tracefs: Path) -> None:
    made = record.calibrate(fake / "x.data", ["true"], None)
    assert made == fake / "x.data.rmap"
    assert "try_to_unmap_one.isra.0" in (tracefs / "kprobe_events").read_text()
    with pytest.raises(UsageError, match="a command"):
        record.calibrate(fake / "y.data", [], None)


def test_what_is_there_stays_unless_forced(fake: Path) -> None:
    out = fake / "x.data"
    out.write_text("old")
    snapshot.beside(out).write_text("old")
    with pytest.raises(OutputError, match="--force"):
        record.record("light", out, ["true"], None, None)
    assert out.read_text() == "old"
    record.record("light", out, ["true"], None, None, with_snapshot=False, force=True)
    assert out.read_text() != "old"
    assert not snapshot.beside(out).exists(), "one of another recording"


def test_probes_are_defined_and_taken_away_again(fake: Path, tracefs: Path) -> None:
    record.record("rmap", fake / "x.data", ["true"], None, None, with_snapshot=False)
    lines = (tracefs / "kprobe_events").read_text().splitlines()
    assert lines[0] == "p:kprobes/try_to_migrate try_to_migrate folio=folio:x64"
    assert lines[3:] == ["-:kprobes/try_to_migrate", "-:kprobes/try_to_migrate_ret", "-:kprobes/try_to_unmap_one"]


def test_a_probe_of_another_is_left_alone(fake: Path, tracefs: Path) -> None:
    (tracefs / "events/kprobes/try_to_migrate_ret").mkdir(parents=True)
    with pytest.raises(UsageError, match="already"):
        record.record("rmap", fake / "x.data", ["true"], None, None)
    assert (tracefs / "kprobe_events").read_text().splitlines()[-1] == "-:kprobes/try_to_migrate"


def test_a_recorder_that_records_nothing_leaves_nothing(fake: Path) -> None:
    (fake / "bin" / "perf").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(UsageError, match="recorded nothing"):
        record.record("light", fake / "x.data", ["true"], None, None)
    assert not [path for path in fake.iterdir() if "x.data" in path.name]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("heavy", None, ["true"], None, None), "there are light, rmap, graph"),
        (("light", None, ["true"], "strace", None), "there are perf, trace-cmd"),
        (("light", None, ["true"], None, 1.0), "not both"),
        (("light", None, ["no-such-program"], None, None), "no such program"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_wrong_use(arguments: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        record.dry_run(*arguments)


# --- the snapshot ---


def test_the_snapshot_knows_this_process(tmp_path: Path) -> None:
    taken = json.loads(json.dumps(proc.take()))
    assert taken["begin_ns"] < taken["end_ns"]
    trace = tmp_path / "t"
    trace.mkdir()
    source = tmp_path / "x.data"
    snapshot.beside(source).write_text(json.dumps(taken))
    head, stats = snapshot.take_in(source, trace)
    assert head is not None
    tasks, vmas = (pl.read_parquet(trace / f"snapshot/{name}.parquet") for name in ("tasks", "vmas"))
    assert [stats["snapshot/tasks"].rows, stats["snapshot/vmas"].rows] == [len(tasks), len(vmas)]
    mine = tasks.filter(pl.col("tid") == os.getpid())
    assert mine["ppid"].to_list() == [os.getppid()]
    own = vmas.filter(pl.col("pid") == os.getpid())
    stack = own.filter(pl.col("path").cast(pl.String) == "[stack]")
    assert stack["perms"].to_list() == ["rw-p"]
    assert stack["anon"].item() > 0
    text = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[stack]")]
    assert f"{stack['end'].item():x}" == text[0].split()[0].split("-")[1]


@pytest.mark.skipif(not os.access("/proc/kpageflags", os.R_OK), reason="only root may read page flags")
def test_page_flags_are_those_of_each_frame() -> None:
    frames = np.array([5000, 3, 5001, 3, 4999, 511, 512], np.uint64)
    flags = PageFlags()
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        one_by_one = [int.from_bytes(os.pread(file.fileno(), 8, 8 * frame), "little") for frame in frames.tolist()]
    locked_or_referenced = np.uint64(0b111)  # these change from one moment to the next
    found = flags.of(frames)
    flags.close()
    assert found is not None
    assert ((found ^ np.array(one_by_one, np.uint64)) & ~locked_or_referenced).tolist() == [0] * len(frames)


def test_ingest_takes_the_snapshot_in(tmp_path: Path) -> None:
    capture = tmp_path / "x.data"
    capture.write_bytes((ROOT / "fixtures/demo.perf.data").read_bytes())
    bare = tracekit.ingest(capture)
    assert bare.manifest["snapshot"] is None
    snapshot.beside(capture).write_text(json.dumps(proc.take()))
    trace = tracekit.ingest(capture, force=True)
    form = json.loads((resources.schemas() / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(form).validate(trace.manifest)
    assert trace.manifest["snapshot"]["name"] == "x.data.snapshot.json"
    rows = trace.table("snapshot/vmas").collect()
    assert len(rows) == trace.manifest["tables"]["snapshot/vmas"]["rows"] > 0
    assert rows.columns == list(snapshot.VMAS)
    said = inspect.text(inspect.inspect(trace))
    assert f"snapshot x.data.snapshot.json: {trace.manifest['tables']['snapshot/tasks']['rows']} threads" in said


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": "tracekit/snapshot/2"}'])
def test_what_is_no_snapshot_is_said(content: str, tmp_path: Path) -> None:
    capture = tmp_path / "x.data"
    capture.write_bytes((ROOT / "fixtures/demo.perf.data").read_bytes())
    snapshot.beside(capture).write_text(content)
    with pytest.raises(TraceFormatError, match="snapshot"):
        tracekit.ingest(capture)
    assert not (tmp_path / "x.data.tracekit").exists()


# --- doctor ---


def test_doctor_says_what_can_be_recorded(tracefs: Path) -> None:
    good = doctor.examine(machine(tracefs))
    assert {one.what: one.status for one in good if one.area == "record"} == dict.fromkeys(PROFILES, "ok")
    bad = doctor.examine(machine(None, root=False, perf=None, kprobes=False))
    assert {one.what: one.status for one in bad if one.area == "record"} == dict.fromkeys(PROFILES, "missing")
    assert (doctor.healthy(good), doctor.healthy(bad)) == (True, False)
    assert all(one.advice for one in [*good, *bad] if one.status == "missing")
    assert len(doctor.text(bad).splitlines()) == len(bad)


def test_doctor_on_this_machine(tracekit: Any) -> None:
    done = tracekit("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    healthy = doctor.healthy([doctor.Finding(**one) for one in findings])
    assert done.returncode == (0 if healthy else 1)
    assert {"python", "polars", "perf", "kprobes", "light"} <= {one["what"] for one in findings}

"""The real command: verbs, streams, exit codes, interruptions, faults."""

import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CAPTURES, Run

DEMO, LOST, NO_PROBES = CAPTURES["demo"], CAPTURES["7.2-rec-lost"], CAPTURES["6.12-forkcow-c4-all"]
VERBS = ("ingest", "info", "replay", "report", "compare", "validate", "policies", "formats", "record", "doctor", "demo")


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of complaint; nothing on stdout, no traceback."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("tracekit: ")
    return done.stderr


# --- what it does ---


def test_help_names_every_verb(tracekit: Run) -> None:
    done = tracekit("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z]+)  ", done.stdout, re.MULTILINE)
    assert set(VERBS) <= set(listed)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, tracekit: Run) -> None:
    done = tracekit(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: tracekit {verb}")


def test_version(tracekit: Run) -> None:
    assert re.fullmatch(r"tracekit \d+\.\d+\.\d+\n", tracekit("--version").stdout)


def test_ingest_info_replay_report(tracekit: Run, tmp_path: Path) -> None:
    capture = tmp_path / "demo.perf.data"
    shutil.copyfile(DEMO, capture)
    done = tracekit("ingest", capture)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{capture}.tracekit: 1,751 records of 35 events\n"
    shown = tracekit("info", f"{capture}.tracekit").stdout
    assert "fidelity observed" in shown
    assert re.search(r"^ +272 events/kprobes/remove_migration_pte$", shown, re.MULTILINE)
    assert re.search(r"^counter_early_exit +yes$", shown, re.MULTILINE)
    result = tmp_path / "result"
    shown = tracekit("replay", f"{capture}.tracekit", "--policy", "counter_early_exit", "-o", result).stdout
    assert re.search(r"^  counter_early_exit +remove_migration_ptes.vma_visit +272 +16$", shown, re.MULTILINE)
    assert "Replay is open-loop" in shown
    for suffix in ("html", "md", "json", "txt", "svg", "png"):
        done = tracekit("report", result, "-o", tmp_path / f"report.{suffix}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / f"report.{suffix}").stat().st_size > 500
    assert (tmp_path / "report.json").read_text() == (result / "summary.json").read_text()


def test_replay_of_a_file_straight_away(tracekit: Run, tmp_path: Path) -> None:
    capture = tmp_path / "demo.perf.data"
    shutil.copyfile(DEMO, capture)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = tracekit("replay", capture, "--policy", "counter_early_exit", env={"TMPDIR": str(scratch)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "counter_early_exit" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path != scratch] == ["demo.perf.data"]
    assert list(scratch.iterdir()) == []


def test_demo(tracekit: Run, tmp_path: Path) -> None:
    done = tracekit("demo", "-o", tmp_path / "kept")
    assert (done.returncode, done.stderr) == (0, "")
    assert "remove_migration_ptes.vma_visit  272        16" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["demo.perf.data", "demo.perf.data.tracekit", "report.html", "result"]


@pytest.mark.parametrize(
    "args",
    [
        ("ingest", DEMO, "-o", "t"),
        ("info", DEMO),
        ("replay", DEMO, "--all"),
        ("replay", LOST, "--all", "--max-loss", "1"),
        ("policies",),
        ("policies", "--operations"),
        ("formats",),
        ("validate", "."),
    ],
    ids=lambda args: " ".join(map(str, args[:1])),
)
def test_json_is_one_document_and_nothing_else(args: tuple[Any, ...], tracekit: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"config": "none", "predictions": []}')
    done = tracekit(*args, "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert done.stdout.endswith("\n")


@pytest.fixture(scope="module")
def nothing_to_go_by(tmp_path_factory: pytest.TempPathFactory, tracekit: Run) -> Path:
    """A trace without probes of a machine whose page table entries are not decoded: nothing can be reconstructed."""
    made = tmp_path_factory.mktemp("none") / "t.tracekit"
    assert tracekit("ingest", NO_PROBES, "-o", made).returncode == 0
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["machine"]["arch"] = "riscv64"
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def test_what_cannot_be_judged_names_the_events_and_how_to_record_them(tracekit: Run, nothing_to_go_by: Path) -> None:
    done = tracekit("replay", nothing_to_go_by, "--policy", "counter_early_exit")
    assert done.returncode == 0
    assert "not judgeable: the trace has no try_to_migrate_one, remove_migration_pte_visit" in done.stdout
    for shown in (done.stdout, tracekit("info", nothing_to_go_by).stdout):
        line = next(line.strip() for line in shown.splitlines() if "perf record" in line)
        assert "p:kprobes/try_to_migrate_one try_to_migrate_one folio=folio:x64" in line
        # what is printed is a command, whole and quoted
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_the_command_that_info_prints_records_what_the_policies_need(tracekit: Run, nothing_to_go_by: Path) -> None:
    done = tracekit("info", nothing_to_go_by, "--json")
    commands = {one["record"] for one in json.loads(done.stdout)["policies"] if one["record"]}
    assert len(commands) == 1
    for probe in ("try_to_migrate_one", "remove_migration_pte", "try_to_migrate", "folio_mc_copy"):
        assert f"p:kprobes/{probe} " in next(iter(commands))


# --- exit codes ---


def test_losses_exit_3_unless_allowed(tracekit: Run) -> None:
    for verb in ("info", "replay"):
        done = tracekit(verb, LOST)
        assert done.returncode == 3
        assert done.stdout
        assert done.stderr == "tracekit: perf.data: events were lost, 10,227 of them\n"
    assert tracekit("info", LOST, "--max-loss", "1").returncode == 0
    assert tracekit("info", LOST, "--max-loss", "0.5").returncode == 3


def test_ingest_of_a_trace_with_losses_keeps_it_and_exits_3(tracekit: Run, tmp_path: Path) -> None:
    assert tracekit("ingest", LOST, "-o", tmp_path / "t").returncode == 3
    assert (tmp_path / "t" / "manifest.json").exists()


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nope",),
        ("replay",),
        ("replay", "x", "--nope"),
        ("ingest", "x", "--jobs", "many"),
        ("info", "x", "--max-loss", "2"),
    ],
    ids=" ".join,
)
def test_usage_exits_2(args: tuple[str, ...], tracekit: Run) -> None:
    done = tracekit(*args)
    assert done.returncode == 2
    assert "Usage: tracekit" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def result(tracekit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "result"
    assert tracekit("replay", DEMO, "-o", out).returncode == 0
    return out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("info", "absent.data"), r"absent\.data: cannot be read: No such file or directory"),
        (("info", "folder"), r"folder: is a directory; give the trace file inside it"),
        (("ingest", "text"), r"text: offset 0x0: starts with b'hello"),
        (("ingest", "empty"), r"empty: offset 0x0: is empty"),
        (("ingest", "cut"), r"cut: .*"),
        (("ingest", DEMO, "-o", "folder"), r"folder: exists; give --force"),
        (("replay", DEMO, "--policy", "nope"), r"'nope' is not among the policies: as_traced, batched_copy"),
        (("replay", DEMO, "--policy", "counter_early_exit:x=1"), r"'x=1' is not a parameter of counter_early_exit"),
        (("replay", DEMO, "--policy", "counter_early_exit:scope=none"), r"scope is one of small, all, not 'none'"),
        (("replay", DEMO, "--fidelity", "imagined"), r"--fidelity imagined"),
        (("replay", DEMO, "-o", "folder"), r"folder exists"),
        (("report", "RESULT", "-o", "r.doc"), r"'doc' is not among the reports: html, json, md"),
        (("report", "RESULT", "-o", "r"), r"its suffix says what to write: \.html"),
        (("report", "text", "-o", "r.md"), r"text: not a result"),
        (("report", "absent", "-o", "r.md"), r"absent: not a result"),
        (("report", "folder", "-o", "r.md"), r"folder: not a result"),
        (("validate", "folder"), r"folder: no spec\.json below"),
        (("validate", "odd"), r"odd/spec\.json: cannot be understood"),
        (("demo", "-o", "folder"), r"folder exists"),
        (("record", "--profile", "heavy", "true"), r"there are light, rmap, graph"),
        (("record", "--dry-run", "--seconds", "1", "true"), r"not both|cannot record"),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(DEMO), "DEMO") if isinstance(value, tuple) else "",
)  # fmt: skip
def test_faults_exit_1_with_one_line(
    args: tuple[Any, ...], said: str, tracekit: Run, tmp_path: Path, result: Path
) -> None:
    (tmp_path / "folder" / "letters").mkdir(parents=True)
    (tmp_path / "text").write_text("hello world\n" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(DEMO.read_bytes()[:100])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "spec.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    done = tracekit(*(result if arg == "RESULT" else arg for arg in args), cwd=tmp_path)
    assert re.search(said, one_line(done, 1))
    assert sorted(tmp_path.rglob("*")) == before, "nothing came, nothing went"


# --- targets that cannot be written ---

WRITERS = {
    "ingest": ("ingest", DEMO, "-o"),
    "replay": ("replay", DEMO, "-o"),
    "demo": ("demo", "-o"),
    "report": ("report", "RESULT", "-o"),
}


@pytest.mark.parametrize("parent", ["file", "absent", "/proc"])
@pytest.mark.parametrize("verb", WRITERS)
def test_unwritable_target(verb: str, parent: str, tracekit: Run, tmp_path: Path, result: Path) -> None:
    """A parent that is a file, that is not there, and /proc, where not even root may make a file."""
    (tmp_path / "file").touch()
    args = [result if arg == "RESULT" else arg for arg in WRITERS[verb]]
    done = tracekit(*args, tmp_path / parent / "out.md")
    said = done.stderr
    assert done.returncode == 1, said
    assert said.count("\n") == 1
    assert "cannot be written" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 128 KiB left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=False,
                                       stderr=subprocess.DEVNULL).returncode:  # fmt: skip
        pytest.skip("may not mount a small file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("verb", WRITERS)
def test_full_disk(verb: str, tracekit: Run, full_disk: Path, result: Path) -> None:
    room = 8 if verb in ("replay", "report") else 64
    (full_disk / "filler").write_bytes(bytes((128 - room) << 10))
    args = [result if arg == "RESULT" else arg for arg in WRITERS[verb]]
    done = tracekit(*args, full_disk / "out.svg")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left" in done.stderr
    assert [path.name for path in full_disk.iterdir()] == ["filler"], "nothing half-written stays"


def test_full_stdout(tracekit: Run) -> None:
    for unbuffered in ("", "1"):
        with Path("/dev/full").open("w") as full:
            done = tracekit("policies", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
        assert done.returncode == 1
        assert done.stderr == "tracekit: standard output: cannot be written: No space left on device\n"


# --- pipes, terminals, signals ---


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [("policies",), ("replay", DEMO), ("--help",)], ids=lambda args: args[0])
def test_a_closed_pipe_is_quiet(args: tuple[Any, ...], unbuffered: str, tracekit: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = tracekit(*args, stdout=write, env={"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_head_is_satisfied(command: list[str]) -> None:
    first = subprocess.Popen([*command, "replay", str(DEMO), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stderr is not None
    head = subprocess.run(["head", "-1"], stdin=first.stdout, capture_output=True, check=True)
    first.stdout.close()
    assert head.stdout == b"{\n"
    assert (first.stderr.read(), first.wait()) == (b"", 0)
    first.stderr.close()


def on_terminal(command: list[str], *, stdout: int | None = None, cwd: Path) -> tuple[int, bytes]:
    """Exit status and what a terminal shows; ``stdout`` may go elsewhere."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(command, stdin=theirs, stdout=stdout or theirs, stderr=theirs, cwd=cwd)
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            shown += os.read(ours, 65536)
    except OSError:  # EIO: the last one closed it
        pass
    os.close(ours)
    return done.wait(), shown


def test_progress_on_a_terminal_only(command: list[str], tracekit: Run, tmp_path: Path) -> None:
    status, shown = on_terminal([*command, "ingest", str(DEMO), "-o", "a"], cwd=tmp_path)
    assert status == 0
    assert re.search(rb"ingest +\d+%\r", shown)
    assert b"\r\x1b[K" in shown, "the progress line is wiped in the end"
    assert shown.rstrip().endswith(b"records of 35 events")
    done = tracekit("ingest", DEMO, "-o", tmp_path / "b")
    assert done.stderr == ""


def test_progress_never_mixes_with_results(command: list[str], tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        status, shown = on_terminal([*command, "info", str(DEMO), "--json"], stdout=out.fileno(), cwd=tmp_path)
    assert status == 0
    assert b"ingest" in shown
    assert json.loads((tmp_path / "out").read_text())


@pytest.mark.parametrize(
    "args", [("replay", DEMO, "--all"), ("info", DEMO), ("--help",), ("nope",)], ids=lambda a: a[0]
)
def test_no_escape_codes_without_a_terminal(args: tuple[Any, ...], tracekit: Run) -> None:
    done = tracekit(*args, env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_output_in_a_locale_without_the_dash(tracekit: Run) -> None:
    done = tracekit("replay", DEMO, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert r"\u2013" in done.stdout


@pytest.fixture(scope="module")
def long_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo capture with its records repeated: a valid file that takes seconds to ingest."""
    whole = DEMO.read_bytes()
    offset, size = struct.unpack_from("<QQ", whole, 40)  # perf_file_header.data
    bits = int.from_bytes(whole[72:104], "little").bit_count()
    data, features = whole[offset : offset + size], whole[offset + size : offset + size + 16 * bits]
    start, times = -(-len(whole) // 8) * 8, (40 << 20) // size
    file = tmp_path_factory.mktemp("long") / "long.data"
    with file.open("wb") as out:
        out.write(whole[:40] + struct.pack("<QQ", start, size * times) + whole[56:])
        out.write(bytes(start - len(whole)))
        for _ in range(times):
            out.write(data)
        out.write(features)
    return file


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "it was done before it could be interrupted"
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.mark.parametrize("verb", ["ingest", "replay"])
def test_interrupted_in_the_middle_it_leaves_nothing(
    verb: str, command: list[str], long_capture: Path, tmp_path: Path
) -> None:
    scratch, target = tmp_path / "scratch", tmp_path / "target"
    scratch.mkdir()
    target.mkdir()
    process = subprocess.Popen(
        [*command, verb, str(long_capture), "-o", str(target / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    wait_for(lambda: any((target if verb == "ingest" else scratch).rglob("*.parquet")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err) == (b"", b"tracekit: interrupted; nothing was left half-written\n")
    assert list(scratch.iterdir()) == list(target.iterdir()) == []
    assert [path.name for path in long_capture.parent.iterdir()] == ["long.data"]


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    code = (
        "import sys; from tracekit import cli, inspect\n"
        "inspect.inspect = None\n"
        f"sys.argv = ['tracekit', 'info', {str(DEMO)!r}]; cli.main()"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TypeError" in done.stderr

"""``tracekit record``: perf or trace-cmd with the events that tracekit wants, and a snapshot of what they change.

The program waits behind a gate until tracing is on and the snapshot taken; so nothing of it is missed, and whatever is
in the snapshot can still be seen to change.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tracekit import snapshot
from tracekit.errors import OutputError, UsageError
from tracekit.profiles import PROFILES
from tracekit.record import plan as plans
from tracekit.record import proc
from tracekit.record import system as systems

DEFAULT_NAME = {"perf": "perf.data", "trace-cmd": "trace.dat"}
_GATE = 'read _ <"$0" && exec "$@"'
_FOR_EVER = "infinity"  # sleep's word for it
_LOOK_S = 0.01


class Recording(NamedTuple):
    """What was recorded.

    Attributes:
        out: the trace.
        status: exit status of the program; None: it was ended by an interrupt.
        left_out: events and functions of the profile that the kernel does not have.
    """

    out: Path
    status: int | None
    left_out: list[str]


def dry_run(profile: str, out: Path | None, program: Sequence[str], recorder: str | None, seconds: float | None) -> str:
    """The commands that ``record`` would run.

    Raises:
        UsageError: it cannot be done here.
    """
    system, plan, _ = _plan(profile, out, recorder)
    return plan.shell(_program(program, seconds), system.tracefs or systems.TRACEFS[0])


def record(  # noqa: PLR0913 - all but the first are options
    profile: str,
    out: Path | None,
    program: Sequence[str],
    recorder: str | None,
    seconds: float | None,
    *,
    with_snapshot: bool = True,
    force: bool = False,
) -> Recording:
    """Record ``program``, or without one the machine for ``seconds`` or until an interrupt.

    Raises:
        UsageError: it cannot be done here, or the recorder did not do it.
        OutputError: ``out`` exists, or cannot be written.
    """
    system, plan, out = _plan(profile, out, recorder)
    if out.exists() and not force:
        raise OutputError(f"{out} exists; give another -o, or --force to replace it")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.absolute().parent))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    made = scratch / out.name
    command = [str(made) if word == str(out) else word for word in plan.command]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.enter_context(_probes(plan.probes, system.tracefs or systems.TRACEFS[0]))
        status = _run(command, _program(program, seconds), made, take=with_snapshot)
        if not made.exists():
            raise UsageError(f"{command[0]} recorded nothing; what it says stands above")
        _put_in_place(made, out)
    return Recording(out, status, plan.left_out)


def calibrate(out: Path, program: Sequence[str], recorder: str | None, *, force: bool = False) -> Path:
    """Record ``program`` once more, with probes on every visit, into ``out``.rmap: two densities of the same work.

    Their difference is what tracing costs (ACCURACY.md, source 1): ``tracekit replay OUT --costs OUT.rmap``.

    Raises:
        UsageError, OutputError: as ``record``.
    """
    if not program:
        raise UsageError("--calibrate runs the program twice: give it a command")
    target = out.with_name(f"{out.name}.rmap")
    return record("rmap", target, program, recorder, None, with_snapshot=False, force=force).out


def _plan(profile: str, out: Path | None, recorder: str | None) -> tuple[systems.System, plans.Plan, Path]:
    if profile not in PROFILES:
        raise UsageError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    if recorder not in (None, *DEFAULT_NAME):
        raise UsageError(f"no recorder {recorder!r}; there are {', '.join(DEFAULT_NAME)}")
    system = systems.look()
    chosen = plans.make(system, profile, out or Path(), recorder)
    target = out or Path(DEFAULT_NAME[chosen.command[0]])
    return system, plans.make(system, profile, target, recorder), target


def _program(program: Sequence[str], seconds: float | None) -> list[str]:
    if program and seconds is not None:
        raise UsageError("either a command or --seconds, not both")
    if program and shutil.which(program[0]) is None:
        raise UsageError(f"{program[0]}: there is no such program")
    return list(program) or ["sleep", _FOR_EVER if seconds is None else f"{seconds:g}"]


@contextlib.contextmanager
def _probes(probes: Sequence[Sequence[str]], tracefs: Path) -> Iterator[None]:
    """Define kprobes, and take them away again.

    Raises:
        UsageError: the kernel does not take one, or there is one of that name.
    """
    file = tracefs / "kprobe_events"
    made: list[str] = []
    try:
        for definitions in probes:
            name = plans.name_of(definitions[0])
            if (tracefs / "events" / name).exists():
                raise UsageError(f"there is a probe {name} already; take it away with: echo -:{name} >> {file}")
            if not any(_append(file, definition) for definition in definitions):
                raise UsageError(f"the kernel does not take the probe {definitions[0]!r}; see {tracefs}/error_log")
            made.append(name)
        yield
    finally:
        for name in made:
            _append(file, f"-:{name}")


def _append(file: Path, line: str) -> bool:
    """Whether the kernel took ``line``. Not by open(): that seeks to the end, which tracefs refuses."""
    try:
        events = os.open(file, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return False
    try:
        return os.write(events, f"{line}\n".encode()) > 0
    except OSError:
        return False
    finally:
        os.close(events)


def _run(command: Sequence[str], program: Sequence[str], made: Path, *, take: bool) -> int | None:
    """Run recorder and program to their end; the program's exit status, None where an interrupt ended it."""
    gate = made.with_name("gate")
    os.mkfifo(gate)
    # what it has to say goes to our stderr as it is
    recorder = subprocess.Popen([*command, "sh", "-c", _GATE, str(gate), *program])  # noqa: S603 - as was asked for
    try:
        _open(gate, recorder, snapshot.beside(made) if take else None)
        return recorder.wait()
    except KeyboardInterrupt:
        return None
    finally:
        if recorder.poll() is None:
            recorder.send_signal(signal.SIGINT)  # it then writes what it has, and ends the program
            recorder.wait()


def _open(gate: Path, recorder: "subprocess.Popen[bytes]", target: Path | None) -> None:
    """Wait until the program stands at the gate, take the snapshot and let it through; or until the recorder ends."""
    while recorder.poll() is None:
        try:
            file = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
            time.sleep(_LOOK_S)
            continue
        try:
            if target is not None:
                target.write_text(json.dumps(proc.take(), separators=(",", ":")))
            os.write(file, b"\n")
        finally:
            os.close(file)
        return


def _put_in_place(made: Path, out: Path) -> None:
    for part, target in ((made, out), (snapshot.beside(made), snapshot.beside(out))):
        if part.exists():
            part.replace(target)
        else:
            target.unlink(missing_ok=True)  # of a recording before

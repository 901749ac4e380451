"""What this machine offers to record with, looked up once: tools, tracefs, permissions."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
BTF = Path("/sys/kernel/btf/vmlinux")
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


class System(NamedTuple):
    """Attributes.

    root: whether this process may trace the whole machine.
    perf, trace_cmd: version; None: not there, or it does not run.
    tracefs: where it is mounted and can be read; None: nowhere.
    kprobes, btf: whether the kernel takes probes, and their arguments by name.
    graph: whether it has the function_graph tracer.
    """

    release: str
    arch: str
    root: bool
    perf: str | None
    trace_cmd: str | None
    tracefs: Path | None
    kprobes: bool
    btf: bool
    graph: bool

    def has_event(self, event: str) -> bool:
        """Whether ``system:event`` exists, or with ``system:*`` any of that system."""
        system, _, name = event.partition(":")
        return self.tracefs is not None and Path(self.tracefs, "events", system, name.rstrip("*")).exists()

    def functions(self) -> dict[str, str]:
        """Functions that take a probe: name without the compiler's suffix → name."""
        found: dict[str, str] = {}
        if self.tracefs is not None:
            for line in _lines(self.tracefs / "available_filter_functions"):
                name = line.split()[0]
                base = name.partition(".")[0]
                if name == base or not name.endswith(".cold"):
                    found[base] = name if name == base else found.get(base, name)
        return found


def look() -> System:
    """This machine, now."""
    tracefs = next((path for path in TRACEFS if os.access(path / "available_events", os.R_OK)), None)
    readme = "\n".join(_lines(tracefs / "README")) if tracefs else ""
    tracers = " ".join(_lines(tracefs / "available_tracers")).split() if tracefs else []
    return System(
        release=os.uname().release,
        arch=os.uname().machine,
        root=os.geteuid() == 0,
        perf=_version("perf", "--version"),
        trace_cmd=_version("trace-cmd", "--version") or _version("trace-cmd", "record", "-h"),
        tracefs=tracefs,
        kprobes=tracefs is not None and (tracefs / "kprobe_events").exists(),
        btf=BTF.exists() and "<argname>" in readme,
        graph="function_graph" in tracers,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _version(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - fixed names
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(done.stdout + done.stderr)
    return found.group() if found else None

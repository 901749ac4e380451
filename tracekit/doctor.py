"""What this machine can record and analyse, one line each with what to do: ``tracekit doctor``."""

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tracekit.profiles import PROFILES
from tracekit.record import plan
from tracekit.record.system import System, look

PACKAGES = ("numpy", "polars", "pyarrow", "typer", "matplotlib", "zstandard")
LEAST_PYTHON = (3, 11)
_FREE_BYTES = 1 << 30


class Finding(NamedTuple):
    """One line.

    Attributes:
        status: ok; missing: something cannot be done; note: worth knowing.
        advice: what to do; None: nothing.
    """

    area: str
    what: str
    status: str
    found: str
    advice: str | None = None


def examine(system: System | None = None) -> list[Finding]:
    """Look at everything that recording and analysis need."""
    system = system or look()
    return [*_analysis(), *_parts(system), *(_profile(system, name) for name in PROFILES)]


def healthy(findings: list[Finding]) -> bool:
    """Whether traces can be analysed, and at least one profile recorded."""
    broken = any(one.status == "missing" for one in findings if one.area == "analyse")
    return not broken and any(one.status == "ok" for one in findings if one.area == "record")


def text(findings: list[Finding]) -> str:
    """``findings`` for a terminal."""
    wide = max(len(f"{one.area} {one.what}") for one in findings)
    return "\n".join(
        f"{one.status:<7}  {f'{one.area} {one.what}':<{wide}}  {one.found}" + (f"; {one.advice}" if one.advice else "")
        for one in findings
    )


def _analysis() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= LEAST_PYTHON
    wanted = ".".join(map(str, LEAST_PYTHON))
    found = [
        Finding("analyse", "python", *(("ok", version) if good else ("missing", version, f"install {wanted} or later")))
    ]
    for name in PACKAGES:
        try:
            found.append(Finding("analyse", name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding("analyse", name, "missing", "not installed", f"pip install {name}"))
    scratch = Path(tempfile.gettempdir())
    free = shutil.disk_usage(scratch).free
    usable = os.access(scratch, os.W_OK) and free >= _FREE_BYTES
    advice = None if usable else "set TMPDIR to a folder with room: traces are unpacked there unless ingested with -o"
    found.append(
        Finding("analyse", "scratch space", "ok" if usable else "note", f"{free / 1e9:.1f} GB in {scratch}", advice)
    )
    return found


def _parts(system: System) -> list[Finding]:
    def either(what: str, good: bool, found: str, lacking: str, advice: str) -> Finding:
        return Finding("system", what, "ok", found) if good else Finding("system", what, "note", lacking, advice)

    tracefs, limit = system.tracefs, _limit("perf_event_paranoid")
    return [
        Finding("system", "kernel", "ok", f"{system.release} {system.arch}"),
        either("root", system.root, "yes", "no", "record with sudo; analysis needs none"),
        either("perf", system.perf is not None, str(system.perf), "not there", "install linux-perf or linux-tools"),
        either("trace-cmd", system.trace_cmd is not None, str(system.trace_cmd), "not there", "install trace-cmd"),
        either("tracefs", tracefs is not None, str(tracefs), "none", "mount -t tracefs nodev /sys/kernel/tracing"),
        either("kprobes", system.kprobes, "yes", "no", "profile rmap needs a kernel with CONFIG_KPROBE_EVENTS"),
        either("BTF arguments", system.btf, "yes", "no", "probes name their arguments by register instead"),
        either("function_graph", system.graph, "yes", "no", "profile graph needs CONFIG_FUNCTION_GRAPH_TRACER"),
        Finding("system", "perf_event_paranoid", "ok", "unknown" if limit is None else f"{limit} (root may do all)"),
    ]


def _profile(system: System, name: str) -> Finding:
    fault = plan.fault(system, name, plan.usual(system, name))
    if fault is not None:
        return Finding("record", name, "missing", *fault)
    made = plan.make(system, name, Path("trace"))
    left_out = f", {len(made.left_out)} of its events and functions are not in this kernel" if made.left_out else ""
    return Finding("record", name, "ok", f"with {made.command[0]}{left_out}")


def _limit(name: str) -> int | None:
    try:
        text = Path("/proc/sys/kernel", name).read_text()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"-?\d+\n?", text) else None

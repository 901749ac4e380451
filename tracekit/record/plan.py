"""A profile and a machine → the one command that records it there, or the reasons why it cannot."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tracekit.errors import UsageError
from tracekit.profiles import EVENTS, GRAPH_DEPTH, GRAPH_OF, PER_FOLIO, PROBES
from tracekit.record.system import System

BUFFER_KB = 16384  # per CPU: what the shared captures were recorded with, none of which lost anything


class Plan(NamedTuple):
    """Attributes.

    probes: of each, lines for ``kprobe_events``, of which the first that the kernel takes will do; they are taken away
        again afterwards.
    command: of the recorder, without the program that it is to run.
    left_out: events and functions of the profile that this kernel does not have.
    """

    probes: list[list[str]]
    command: list[str]
    left_out: list[str]

    def shell(self, program: Sequence[str], tracefs: Path) -> str:
        """The same by hand, as root."""
        file = f">> {tracefs}/kprobe_events"
        define = [" || ".join(f"echo {shlex.quote(line)} {file}" for line in lines) for lines in self.probes]
        remove = [f"echo -:{name_of(lines[0])} {file}" for lines in self.probes]
        return "\n".join([*define, shlex.join([*self.command, *program]), *remove])


def name_of(definition: str) -> str:
    """``group/name`` of a line for ``kprobe_events``."""
    return definition.split(maxsplit=1)[0].partition(":")[2]


def make(system: System, profile: str, out: Path, recorder: str | None = None) -> Plan:
    """Plan ``profile`` into ``out`` on ``system``; ``recorder``: perf or trace-cmd, by default what fits.

    Raises:
        UsageError: something is missing; says what, and what to do.
    """
    chosen = recorder or usual(system, profile)
    found = fault(system, profile, chosen)
    if found is not None:
        raise UsageError(f"cannot record the profile {profile} here: {'; '.join(found)}")
    here = [event for event in EVENTS if system.has_event(event)]
    left_out = [event for event in EVENTS if event not in here]
    probes: list[list[str]] = []
    wanted = [] if profile == "graph" else [one for one in PROBES if profile == "rmap" or one.name in PER_FOLIO]
    if system.kprobes:
        functions = system.functions()
        known = [probe for probe in wanted if probe.function in functions]
        probes = [probe.definitions(functions[probe.function], btf=system.btf) for probe in known]
        here += [f"kprobes:{probe.name}" for probe in known]
        left_out += sorted({probe.function for probe in wanted if probe not in known})
    return Plan(probes, _command(chosen, profile, here, out), left_out)


def usual(system: System, profile: str) -> str:
    """perf, whose side-band tells what there was before; trace-cmd where perf will not do."""
    return "trace-cmd" if profile == "graph" or system.perf is None else "perf"


def fault(system: System, profile: str, recorder: str) -> tuple[str, str] | None:
    """What is in the way of recording ``profile`` with ``recorder``, and what to do; None: nothing."""
    tool = system.perf if recorder == "perf" else system.trace_cmd
    known = [
        (system.root, "tracing the whole machine needs root", "run it with sudo"),
        (tool is not None, f"there is no {recorder}", "install it (perf: linux-perf or linux-tools, else trace-cmd)"),
        (system.tracefs is not None, "there is no tracefs", "mount -t tracefs nodev /sys/kernel/tracing"),
        (system.has_event("migrate:*"), "the kernel has no migrate events", "take one with CONFIG_MIGRATION"),
        (
            profile != "rmap" or system.kprobes,
            "the kernel has no kprobes",
            "take one with CONFIG_KPROBE_EVENTS, or the profile light",
        ),
        (profile != "graph" or recorder != "perf", "perf does not record function_graph", "take trace-cmd"),
        (
            profile != "graph" or system.graph,
            "the kernel has no function_graph",
            "take one with CONFIG_FUNCTION_GRAPH_TRACER, or the profile light",
        ),
    ]
    return next(((what, advice) for good, what, advice in known if not good), None)


def _command(recorder: str, profile: str, events: list[str], out: Path) -> list[str]:
    if recorder == "perf":
        chosen = [word for event in events for word in ("-e", event)]
        return ["perf", "record", "-a", "-k", "mono", "-m", f"{BUFFER_KB}K", "-o", str(out), *chosen, "--"]
    head = ["trace-cmd", "record", "-q", "-b", str(BUFFER_KB), "-o", str(out)]
    if profile == "graph":  # on its own clock: with mono the tracer also records what reads the clock
        head += ["-p", "function_graph", "-g", GRAPH_OF, "--max-graph-depth", str(GRAPH_DEPTH)]
    else:
        head += ["-C", "mono"]
    return [*head, *(word for event in events for word in ("-e", event.removesuffix(":*")))]

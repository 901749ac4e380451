"""Which events let a policy be judged, and the command that records them."""

from tracekit import schema
from tracekit.profiles import PROBES
from tracekit.trace import Trace

# What fidelity reconstructed makes without a probe
RECONSTRUCTED = ("try_to_migrate_one", "remove_migration_pte_visit")
_SYSCALLS = ("move_pages", "migrate_pages", "mbind", "munmap", "madvise", "clone", "clone3", "exit_group")


def missing(trace: Trace, needs: tuple[str, ...]) -> list[str]:
    """Those of the canonical events ``needs`` that were not switched on in ``trace``, nor can be reconstructed."""
    made = RECONSTRUCTED if schema.can_rebuild_walks(trace) else ()
    return [event for event in unrecorded(trace, needs) if event not in made]


def whole_walks(trace: Trace, policy: object) -> bool:
    """Whether ``trace`` holds, in place of the VMA visits that ``policy`` needs, whole walks that will do."""
    instead: tuple[str, ...] = getattr(policy, "instead", ())
    seen = any(schema.recorded(trace, event) for event in RECONSTRUCTED)
    return bool(instead) and not seen and all(schema.recorded(trace, event) for event in instead)


def unrecorded(trace: Trace, needs: tuple[str, ...]) -> list[str]:
    """Those of ``needs`` that were not switched on, also where what they show can be reconstructed: with no price."""
    return [event for event in needs if not schema.recorded(trace, event)]


def record_command() -> str:
    """The shell command that records all that the policies here need, as root, and how to do so by hand."""
    probes = "\\n".join(probe.definitions(probe.function, btf=True)[0] for probe in PROBES)
    # one by one: no kernel has all of the functions
    define = f"printf '{probes}\\n' | while read -r p; do echo \"$p\" >> /sys/kernel/tracing/kprobe_events; done"
    calls = " ".join(f"-e syscalls:sys_enter_{name} -e syscalls:sys_exit_{name}" for name in _SYSCALLS)
    events = f"-e 'migrate:*' -e 'kprobes:*' -e sched:sched_process_fork -e sched:sched_process_exit {calls}"
    return f"tracekit record --profile rmap -- CMD  # by hand: {define}; perf record -a {events} -- CMD"

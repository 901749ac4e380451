"""Which events let a policy be judged, and the command that records them."""

from tracekit import schema
from tracekit.trace import Trace

# Kernel function and arguments of each probe; argument names are BTF's, which kprobe_events takes since v6.6. The
# arguments are those of schemas/events/kprobes/.
PROBES = {
    "try_to_migrate": "p:kprobes/try_to_migrate try_to_migrate folio=folio:x64",
    "try_to_migrate_return": "r:kprobes/try_to_migrate_ret try_to_migrate",
    "try_to_migrate_one": (
        "p:kprobes/try_to_migrate_one try_to_migrate_one folio=folio:x64 vma=vma:x64 addr=address:x64 mm=vma->vm_mm:x64"
    ),
    "remove_migration_pte_visit": (
        "p:kprobes/remove_migration_pte remove_migration_pte folio=folio:x64 vma=vma:x64 addr=addr:x64 "
        "mm=vma->vm_mm:x64"
    ),
    "folio_copy": "p:kprobes/folio_mc_copy folio_mc_copy dst=dst:x64 src=src:x64",
    "anon_vma_fork": "p:kprobes/anon_vma_fork anon_vma_fork vma=vma:x64 pvma=pvma:x64",
}
# What fidelity reconstructed makes without a probe
RECONSTRUCTED = ("try_to_migrate_one", "remove_migration_pte_visit")
_SYSCALLS = ("move_pages", "migrate_pages", "mbind", "munmap", "madvise", "clone", "clone3", "exit_group")


def missing(trace: Trace, needs: tuple[str, ...]) -> list[str]:
    """Those of the canonical events ``needs`` that were not switched on in ``trace``, nor can be reconstructed."""
    made = RECONSTRUCTED if schema.shows_life_cycle(trace) else ()
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
    """One shell command that records all that the policies here need, to be run as root."""
    probes = "\\n".join(PROBES.values())
    calls = " ".join(f"-e syscalls:sys_enter_{name} -e syscalls:sys_exit_{name}" for name in _SYSCALLS)
    events = f"-e 'migrate:*' -e 'kprobes:*' -e sched:sched_process_fork -e sched:sched_process_exit {calls}"
    return f"printf '{probes}\\n' >> /sys/kernel/tracing/kprobe_events && perf record -a {events} -- CMD"

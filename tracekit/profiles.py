"""What ``tracekit record`` switches on: events and probes by profile, as data.

light: what fidelity reconstructed rests on, and where the kernel takes probes those that see a folio once: they mark
    its phases, for prices. Cheap enough for production where pages migrate and fault in moderation.
rmap: light, and probes on every visit of the rmap walks and every rmap removal: fidelity observed.
graph: function_graph of what a migration does, for prices; it keeps no arguments, so no policy is judged from it.
"""

from typing import NamedTuple

PROFILES = ("light", "rmap", "graph")
GRAPH_OF, GRAPH_DEPTH = "migrate_pages", 12

# Calls that map, unmap, fork, end and migrate. What the kernel lacks is left out.
SYSCALLS = (
    *("mmap", "munmap", "mremap", "madvise", "mprotect", "brk", "process_madvise"),
    *("clone", "clone3", "fork", "vfork", "execve", "exit", "exit_group"),
    *("move_pages", "migrate_pages", "mbind"),
)
EVENTS = (
    *("migrate:*", "thp:set_migration_pmd", "thp:remove_migration_pmd", "huge_memory:*"),
    *("task:task_newtask", "sched:sched_process_fork", "sched:sched_process_exec", "sched:sched_process_exit"),
    *("exceptions:page_fault_user", "mmap:exit_mmap", "kmem:rss_stat", "tlb:tlb_flush"),
    *("compaction:mm_compaction_begin", "compaction:mm_compaction_end", "compaction:mm_compaction_migratepages"),
    *(f"syscalls:sys_{edge}_{name}" for name in SYSCALLS for edge in ("enter", "exit")),
)


class Probe(NamedTuple):
    """A kprobe, with the arguments that schemas/events/kprobes/ reads.

    Attributes:
        name: of its event; ``_ret`` at the end: a return probe, which has no arguments.
        function: where to put it; a suffix of the compiler (``.isra.0``) may follow there.
        btf: its arguments by name, as kernels with BTF take them (v6.6).
        registers: the same by place, for the others.
    """

    name: str
    function: str
    btf: str = ""
    registers: str = ""

    def definitions(self, function: str, *, btf: bool) -> list[str]:
        """Lines for ``kprobe_events``, the best first: a name of an argument may be another in this kernel."""
        head = f"{'r' if self.name.endswith('_ret') else 'p'}:kprobes/{self.name} {function}"
        arguments = dict.fromkeys((self.btf, self.registers) if btf else (self.registers,))
        return [f"{head} {one}".rstrip() for one in arguments]


# Per folio, not per VMA or page: they cost 1 to 34 % of a migration (ACCURACY.md)
PER_FOLIO = ("try_to_migrate", "remove_migration_ptes", "folio_mc_copy", "folio_copy", "anon_vma_fork")
_VISIT = "folio=$arg1:x64 vma=$arg2:x64 addr=$arg3:x64 mm=+16($arg2):x64"  # vm_mm follows vm_start and vm_end
_FOLIO = ("folio=folio:x64", "folio=$arg1:x64")
PROBES = (
    Probe("try_to_migrate", "try_to_migrate", *_FOLIO),
    Probe("try_to_migrate_ret", "try_to_migrate"),
    Probe(
        "try_to_migrate_one",
        "try_to_migrate_one",
        "folio=folio:x64 vma=vma:x64 addr=address:x64 mm=vma->vm_mm:x64",
        _VISIT,
    ),
    Probe(
        "remove_migration_pte",
        "remove_migration_pte",
        "folio=folio:x64 vma=vma:x64 addr=addr:x64 mm=vma->vm_mm:x64",
        _VISIT,
    ),
    # inlined where folios migrate: it shows splits and undone migrations only
    Probe("remove_migration_ptes", "remove_migration_ptes", "src=src:x64 dst=dst:x64", "src=$arg1:x64 dst=$arg2:x64"),
    Probe("folio_mc_copy", "folio_mc_copy", "dst=dst:x64 src=src:x64", "dst=$arg1:x64 src=$arg2:x64"),
    Probe("folio_copy", "folio_copy", "dst=dst:x64 src=src:x64", "dst=$arg1:x64 src=$arg2:x64"),
    Probe("anon_vma_fork", "anon_vma_fork", "vma=vma:x64 pvma=pvma:x64", "vma=$arg1:x64 pvma=$arg2:x64"),
    Probe("try_to_unmap", "try_to_unmap", *_FOLIO),
    Probe("try_to_unmap_ret", "try_to_unmap"),
    Probe(
        "try_to_unmap_one",
        "try_to_unmap_one",
        "folio=folio:x64 vma=vma:x64 addr=address:x64 mm=vma->vm_mm:x64",
        _VISIT,
    ),
    Probe(
        "folio_remove_rmap_ptes",
        "folio_remove_rmap_ptes",
        "folio=folio:x64 page=page:x64 nr=nr_pages:s32 vma=vma:x64",
        "folio=$arg1:x64 page=$arg2:x64 nr=$arg3:s32 vma=$arg4:x64",
    ),
    Probe("page_remove_rmap", "page_remove_rmap", "page=page:x64 vma=vma:x64", "page=$arg1:x64 vma=$arg2:x64"),
    Probe(
        "folio_remove_rmap_pmd",
        "folio_remove_rmap_pmd",
        "folio=folio:x64 page=page:x64 vma=vma:x64",
        "folio=$arg1:x64 page=$arg2:x64 vma=$arg3:x64",
    ),
    Probe("deferred_split_folio", "deferred_split_folio", *_FOLIO),
    Probe("folio_mark_lazyfree", "folio_mark_lazyfree", *_FOLIO),
    Probe(
        "__tlb_remove_folio_pages",
        "__tlb_remove_folio_pages",
        "page=page:x64 nr=nr_pages:u32",
        "page=$arg2:x64 nr=$arg3:u32",
    ),
    # two nested wrappers with nearly nothing between: their gap is the price of a probe (ACCURACY.md, source 2)
    Probe("rmap_walk", "rmap_walk", "folio=folio:x64 rwc=rwc:x64", "folio=$arg1:x64 rwc=$arg2:x64"),
    Probe("rmap_walk_anon", "rmap_walk_anon", "folio=folio:x64 rwc=rwc:x64", "folio=$arg1:x64 rwc=$arg2:x64"),
)

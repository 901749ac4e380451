"""A kernel that zaps and reclaims, written from MODEL.md A.0, A.3, A.5: it says what its probes would show.

It batches or it does not; what it does is in ``Kernel.counts``. It knows nothing of tracekit.
"""

from collections import Counter
from dataclasses import dataclass, field

import traces

PAGE = 64  # sizeof(struct page)
FOLIO_BYTES = 4096
TABLE = 512 * FOLIO_BYTES


@dataclass
class Folio:
    """A large folio of ``pages`` pages; ``mapped``: mapcount of each."""

    address: int
    pages: int
    mapped: list
    partial: bool = False
    dirty: frozenset = frozenset()
    pinned: bool = False
    swapbacked: bool = False


@dataclass
class Vma:
    """Maps pages ``first`` … of a folio from ``addr`` on; ``present``: those of them with a PTE."""

    number: int
    folio: Folio
    addr: int
    first: int
    present: set = field(default_factory=set)
    read_only: frozenset = frozenset()

    def addr_of(self, page):
        return self.addr + (page - self.first) * FOLIO_BYTES


class Kernel(traces.Script):
    """Zaps with ``zap`` = none or upstream; reclaims with ``unmap`` = page, partial or respect_write."""

    def __init__(self, *, zap="upstream", unmap="partial"):
        super().__init__()
        self.zap_rule, self.unmap_rule, self.counts, self.vmas = zap, unmap, Counter(), 0

    def folio(self, address=0xFFFF_EA00_0010_0000, pages=16):
        return Folio(address, pages, [0] * pages)

    def map(self, folio, pages=None, *, addr=0x7F00_0000_0000, read_only=(), task=7):
        """Map ``pages`` of ``folio`` in a new VMA; the first mapping of all is that of a fault."""
        pages = range(folio.pages) if pages is None else pages
        self.vmas += 1
        vma = Vma(self.vmas, folio, addr, pages[0], set(pages), frozenset(read_only))
        if not any(folio.mapped):
            start = addr - pages[0] * FOLIO_BYTES
            self.add(
                "kprobes:folio_add_new_anon_rmap", folio=folio.address, vma=0x100 + vma.number, addr=start, task=task
            )
        for page in pages:
            folio.mapped[page] += 1
        return vma

    def munmap(self, *ranges, task=7):
        """munmap() of (vma, pages) …: holes are skipped."""
        self.add("syscalls:sys_enter_munmap", task=task)
        for vma, pages in ranges:
            for run in self.runs(vma, pages, self.zap_rule == "none"):
                self.remove(vma, run, task)
        self.add("syscalls:sys_exit_munmap", ret=0, task=task)

    def runs(self, vma, pages, single):
        """Pages of ``vma`` that go in one step."""
        run = []
        for page in pages:
            crosses = vma.addr_of(page) % TABLE == 0
            if run and (single or page != run[-1] + 1 or crosses or page not in vma.present):
                yield run
                run = []
            if page in vma.present:
                run.append(page)
        if run:
            yield run

    def remove(self, vma, run, task=7):
        """folio_remove_rmap_ptes() and what it leads to."""
        folio = vma.folio
        head = folio.address + run[0] * PAGE
        self.add(
            "kprobes:folio_remove_rmap_ptes",
            folio=folio.address,
            page=head,
            nr=len(run),
            vma=0x100 + vma.number,
            task=task,
        )
        for page in run:
            folio.mapped[page] -= 1
            vma.present.discard(page)
        new = sum(folio.mapped[page] == 0 for page in run)
        self.counts["rmap"] += 1
        self.counts["atomics"] += 1 + len(run) + (new > 0)
        if new and any(folio.mapped) and not folio.partial and folio.pages >= 4:
            folio.partial = True
            self.counts["D"] += 1
            self.add("kprobes:deferred_split_folio", folio=folio.address, partially_mapped=1, task=task)

    def free(self, folio):
        """MADV_FREE of all of it."""
        self.add("kprobes:folio_mark_lazyfree", folio=folio.address)

    def reclaim(self, folio, *vmas):
        """try_to_unmap(): the visits of ``vmas`` in that order; stops at a page that it must keep."""
        for vma in vmas:
            mm = 0x300 if vma.number < 100 else 0x400
            self.add("kprobes:try_to_unmap_one", folio=folio.address, vma=0x100 + vma.number, addr=vma.addr, mm=mm)
            self.counts["visits"] += 1
            kept = self.visit(folio, vma)
            self.add("kprobes:try_to_unmap_one_ret", ret=int(not kept))
            if kept:
                folio.swapbacked |= self.unmap_rule == "page" or bool(folio.dirty)
                return

    def visit(self, folio, vma):
        """Whether a page must be kept."""
        single = self.unmap_rule == "page"
        for run in list(self.runs(vma, sorted(vma.present), single)):
            for part in self.by_flags(vma, run):
                self.counts["pends"] += 1
                if folio.pinned or folio.dirty & set(part):
                    return True
                self.remove(vma, part)
        return False

    def by_flags(self, vma, run):
        """``run`` in parts that are all writable or all not, where the rule looks at that."""
        if self.unmap_rule != "respect_write":
            return [run]
        parts = [[run[0]]]
        for page in run[1:]:
            if (page in vma.read_only) == (parts[-1][-1] in vma.read_only):
                parts[-1].append(page)
            else:
                parts.append([page])
        return parts


ALWAYS = (
    "kprobes:folio_remove_rmap_ptes",
    "kprobes:folio_add_new_anon_rmap",
    "kprobes:folio_add_anon_rmap_ptes",
    "kprobes:try_to_unmap_one",
    "kprobes:try_to_unmap_one_ret",
    "kprobes:deferred_split_folio",
    "kprobes:folio_mark_lazyfree",
)

"""A small kernel: processes with VMAs, page tables and rmap trees, run operation by operation; the twin of reconstruct.

Written from MODEL.md A.0, B.2 and B.3 with lists and dicts, page by page, with nothing of tracekit. Each operation
changes its state and writes down the events that a trace of the event set ``std`` shows of it; a migration besides
notes which VMAs its two walks went through. Whoever reconstructs the walks from the events must find the same.
"""

import itertools
from dataclasses import dataclass, field

READ, READ_EXCLUSIVE, WRITE = 28, 29, 30  # swap types of v6.12
FORK, THREAD = 0x01200011 & ~0x01000000, 0x3D0F00
PAGE = 4096
HEAP = 0x600


class AnonVma:
    """struct anon_vma: ``tree`` holds its VMAs in the order in which they were put in."""

    def __init__(self, parent=None):
        self.parent = parent or self
        self.children = self.active = 0
        self.parent.children += 1
        self.tree = []


class File:
    """A shared mapping's i_mmap tree."""

    def __init__(self):
        self.tree = []


@dataclass(eq=False)
class Folio:
    """An order-0 folio: in whose tree it is walked, at which page offset."""

    pfn: int
    mapping: AnonVma | File
    pgoff: int


@dataclass(eq=False)
class Pte:
    """Present, or a migration entry."""

    folio: Folio
    exclusive: bool
    writable: bool = True
    entry: bool = False


@dataclass(eq=False)
class Vma:
    """struct vm_area_struct; ``chain``: its anon_vmas, the oldest link first."""

    mm: "Mm"
    start: int
    end: int
    pgoff: int
    file: File | None = None
    anon: AnonVma | None = None
    chain: list = field(default_factory=list)
    huge: bool | None = None  # advised to have huge pages, or not to

    def page(self, pgoff):
        return self.start + pgoff - self.pgoff

    def trees(self):
        return [anon.tree for anon in self.chain] + ([self.file.tree] if self.file else [])


@dataclass(eq=False)
class Mm:
    """struct mm_struct."""

    vmas: list = field(default_factory=list)
    table: dict = field(default_factory=dict)  # page -> Pte
    users: int = 1
    brk: int = 0  # 0: not asked for yet

    def at(self, page):
        return next((vma for vma in self.vmas if vma.start <= page < vma.end), None)


class Kernel:
    """Attributes.

    events: (code's name, task, arguments, return value), in order.
    walks: ("try" or "remove", [(mm, address), …]), in order.
    """

    def __init__(self):
        self.events, self.walks = [], []
        self.pids, self.pfns = itertools.count(100), itertools.count(0x1000)
        self.mm, self.had = {}, {}  # by task: its address space, and all that it ever had
        self.spawn()

    def say(self, name, task, *arguments, ret=0):
        self.events.append((name, task, arguments, ret))

    def _give(self, task, mm):
        self.mm[task] = mm
        self.had.setdefault(task, []).append(mm)

    # life

    def spawn(self):
        """A process with an image of its own, from where nothing was traced."""
        pid = next(self.pids)
        self._give(pid, Mm())
        self.say("EXEC", pid, pid)
        return pid

    def fork(self, task):
        child = next(self.pids)
        self.say("CLONE", task, FORK)
        self._give(child, self._dup(self.mm[task]))
        self.say("NEWTASK", task, child, FORK)
        return child

    def thread(self, task):
        tid = next(self.pids)
        self._give(tid, self.mm[task])
        self.mm[tid].users += 1
        self.say("NEWTASK", task, tid, THREAD)
        return tid

    def exec(self, task):
        old = self.mm[task]
        self._give(task, Mm())
        self._put(old)
        self.say("EXEC", task, task)

    def exit(self, task):
        mm = self.mm.pop(task)
        self.say("EXIT", task)
        last = mm.users == 1
        self._put(mm)
        if last:
            self.say("EXIT_MMAP", task)

    def _put(self, mm):
        mm.users -= 1
        if not mm.users:
            for vma in mm.vmas:
                self._unlink(vma)
            mm.vmas, mm.table = [], {}

    def _dup(self, parent):
        """dup_mmap(): VMA by VMA, each linked, then its page table copied."""
        child = Mm(brk=parent.brk)
        for vma in parent.vmas:
            new = Vma(child, vma.start, vma.end, vma.pgoff, vma.file, huge=vma.huge)
            if vma.anon:
                self._anon_vma_fork(new, vma)
            if vma.file:
                vma.file.tree.insert(vma.file.tree.index(vma) + 1, new)
                child.vmas.append(new)
                continue  # its pages are left to fault
            child.vmas.append(new)
            for page in range(vma.start, vma.end):
                if (pte := parent.table.get(page)) is not None:
                    pte.exclusive = pte.writable = False
                    child.table[page] = Pte(pte.folio, exclusive=False, writable=False, entry=pte.entry)
        return child

    def _anon_vma_fork(self, new, vma):
        for anon in vma.chain:
            self._link(new, anon)
            if new.anon is None and anon.active == 0 and anon.children < 2:
                new.anon = anon
        if new.anon is None:
            new.anon = AnonVma(vma.anon)
            self._link(new, new.anon)
        new.anon.active += 1

    @staticmethod
    def _link(vma, anon):
        vma.chain.append(anon)
        anon.tree.append(vma)

    @staticmethod
    def _unlink(vma):
        for anon in vma.chain:
            anon.tree.remove(vma)
            if not anon.tree:
                anon.parent.children -= 1
        if vma.anon:
            vma.anon.active -= 1
        if vma.file:
            vma.file.tree.remove(vma)

    # memory

    def mmap(self, task, start, pages, *, shared=False, file=None, fd=3):
        """Anonymous and private, or a shared ``file``."""
        mm = self.mm[task]
        self._unmap(mm, start, start + pages)
        vma = Vma(mm, start, start + pages, 0 if shared else start, file)
        if shared:
            file.tree.append(vma)
        mm.vmas.append(vma)
        mm.vmas.sort(key=lambda one: one.start)
        self._merge(vma)
        self.say("MMAP", task, 0, pages * PAGE, 3, 0x01 if shared else 0x22, fd if shared else 0, 0, ret=start * PAGE)

    def brk(self, task, end):
        """The heap ends at page ``end`` from now on; it began at HEAP, with nothing, when exec made the image."""
        mm = self.mm[task]
        if not mm.brk:
            mm.brk = HEAP
            self.say("BRK", task, 0, ret=HEAP * PAGE)
        if end < mm.brk:
            self._unmap(mm, end, mm.brk)
        elif end > mm.brk:
            vma = Vma(mm, mm.brk, end, mm.brk)
            mm.vmas.append(vma)
            mm.vmas.sort(key=lambda one: one.start)
            self._merge(vma)
        mm.brk = end
        self.say("BRK", task, end * PAGE, ret=end * PAGE)

    def munmap(self, task, start, pages):
        self._unmap(self.mm[task], start, start + pages)
        self.say("MUNMAP", task, start * PAGE, pages * PAGE)

    def _unmap(self, mm, start, end):
        for vma in [one for one in mm.vmas if one.start < end and one.end > start]:
            self._split(vma, start, end)
            mm.vmas.remove(vma)
            for page in range(vma.start, vma.end):
                mm.table.pop(page, None)
            self._unlink(vma)

    def _split(self, vma, start, end):
        """__split_vma(): what lies outside start..end becomes VMAs of their own; the rest is put back in last."""
        for low, high in ((vma.start, min(start, vma.end)), (max(end, vma.start), vma.end)):
            if low >= high:
                continue
            new = Vma(vma.mm, low, high, vma.pgoff + low - vma.start, vma.file, vma.anon, huge=vma.huge)
            for anon in vma.chain:
                self._link(new, anon)
            if new.anon:
                new.anon.active += 1
            first, last = (high, vma.end) if low == vma.start else (vma.start, low)
            vma.pgoff += first - vma.start
            vma.start, vma.end = first, last
            for tree in vma.trees():
                tree.remove(vma)
                tree.append(vma)
            if new.file:
                new.file.tree.append(new)
            vma.mm.vmas.append(new)
        vma.mm.vmas.sort(key=lambda one: one.start)

    def advise(self, task, start, pages, *, huge):
        """A change of flags of part of a mapping: it splits, and what is alike becomes one."""
        mm = self.mm[task]
        for vma in [one for one in mm.vmas if one.start < start + pages and one.end > start]:
            if vma in mm.vmas and vma.huge != huge:
                self._split(vma, start, start + pages)
                vma.huge = huge
                self._merge(vma)
        self.say("MADVISE", task, start * PAGE, pages * PAGE, 14 if huge else 15)

    def _merge(self, vma):
        """The lowest of the neighbours that can becomes all of them, and is put back in last."""
        vmas = vma.mm.vmas
        parts = [vma]
        for one in [one for one in vmas if one.end == vma.start or one.start == vma.end]:
            low, high = sorted((one, vma), key=lambda each: each.start)
            contiguous = low.pgoff + low.end - low.start == high.pgoff
            anons = {part.anon for part in (*parts, one) if part.anon}
            # __anon_vma_prepare() and fork: what has one from its parent takes in nothing that has none
            lone = all(each.anon for each in (one, vma)) or all(len(each.chain) <= 1 for each in (one, vma))
            if contiguous and (one.file, one.huge) == (vma.file, vma.huge) and len(anons) <= 1 and lone:
                parts.append(one)
        if len(parts) == 1:
            return
        parts.sort(key=lambda part: part.start)
        stays = next(part for part in parts if part is not vma)
        first, end, pgoff = parts[0].start, parts[-1].end, parts[0].pgoff
        if stays.anon is None and any(part.anon for part in parts):
            source = next(part for part in parts if part.anon)
            for anon in source.chain:
                self._link(stays, anon)
            stays.anon = source.anon
            stays.anon.active += 1
        for part in parts:
            if part is not stays:
                self._unlink(part)
                vmas.remove(part)
        stays.start, stays.end, stays.pgoff = first, end, pgoff
        for tree in stays.trees():
            tree.remove(stays)
            tree.append(stays)
        vmas.sort(key=lambda one: one.start)

    def dontneed(self, task, start, pages):
        for page in range(start, start + pages):
            self.mm[task].table.pop(page, None)
        self.say("MADVISE", task, start * PAGE, pages * PAGE, 4)

    def write(self, task, page):
        mm = self.mm[task]
        vma, pte = mm.at(page), mm.table.get(page)
        if vma is None or (pte and pte.writable) or (pte and pte.entry):
            return
        self.say("FAULT", task, page * PAGE, 6)
        pgoff = vma.pgoff + page - vma.start
        if vma.file:
            there = self._of_file(vma.file, pgoff)
            mm.table[page] = Pte(there, exclusive=False)
            return
        if vma.anon is None:
            self._prepare(vma)
        # a copy, or, where no one else maps it, the same page moved to its own tree
        mm.table[page] = Pte(Folio(next(self.pfns), vma.anon, pgoff), exclusive=True)

    def _prepare(self, vma):
        """The anon_vma of a neighbour that may become one with it some day: the next, then the one before."""
        for one in reversed(vma.mm.vmas):
            touches = one.end == vma.start or one.start == vma.end
            low, high = sorted((one, vma), key=lambda each: each.start)
            contiguous = low.pgoff + low.end - low.start == high.pgoff
            if touches and contiguous and one.huge == vma.huge and one.file is None and len(one.chain) == 1:
                vma.anon = one.anon
                break
        else:
            vma.anon = AnonVma()
        self._link(vma, vma.anon)
        vma.anon.active += 1

    @staticmethod
    def _of_file(file, pgoff, cache={}):  # noqa: B006 -- the page cache
        return cache.setdefault((file, pgoff), Folio(0x100_0000 + len(cache), file, pgoff))

    # migration

    def migrate(self, task, owner, *pages, between=()):
        """Move ``owner``'s pages, together; operations ``between`` happen after the entries were set."""
        table = self.mm[owner].table
        folios = list({id(table[page].folio): table[page].folio for page in pages if page in table}.values())
        if not folios:
            return
        self.say("CALL", task, owner)
        self.say("EDGE", task, 1, 3)
        for folio in folios:
            self._try(task, folio)
        for operation in between:
            operation()
        for folio in folios:
            self._remove(task, folio)
        self.say("EDGE", task, 0, 3)

    def _try(self, task, folio):
        tried = []
        for vma in self._tree(folio):
            tried.append(vma)
            here = vma.mm.table.get(vma.page(folio.pgoff))
            if here is not None and here.folio is folio:
                here.entry = True
                exclusive = READ_EXCLUSIVE if here.exclusive else READ
                kind = WRITE if here.writable else exclusive
                self.say("SET", task, vma.page(folio.pgoff), folio.pfn, kind)
            if not self._mapped(folio):
                break
        self.walks.append(("try", self._where(tried, folio)))

    def _remove(self, task, folio):
        source, folio.pfn = folio.pfn, next(self.pfns)
        removed = self._tree(folio)
        restored = False
        for vma in removed:
            here = vma.mm.table.get(vma.page(folio.pgoff))
            if here is not None and here.folio is folio and here.entry:
                here.entry = False
                restored = True
                self.say("RESTORE", task, vma.page(folio.pgoff), folio.pfn)
        if restored:  # a walk that finds nothing shows nowhere
            self.walks.append(("remove", self._where(removed, folio)))
        else:
            folio.pfn = source

    @staticmethod
    def _tree(folio):
        over = [v for v in folio.mapping.tree if v.pgoff <= folio.pgoff < v.pgoff + v.end - v.start]
        return sorted(over, key=lambda vma: vma.pgoff)  # stable

    @staticmethod
    def _mapped(folio):
        ptes = [vma.mm.table.get(vma.page(folio.pgoff)) for vma in Kernel._tree(folio)]
        return any(pte is not None and pte.folio is folio and not pte.entry for pte in ptes)

    @staticmethod
    def _where(vmas, folio):
        return [(vma.mm, vma.page(folio.pgoff) * PAGE) for vma in vmas]

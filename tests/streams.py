"""Hand-made life cycles: what tasks, their mappings, faults and migration entries do, one event after the other."""

import itertools

import polars as pl

from tracekit.machine.reconstruct import take
from tracekit.machine.reconstruct.events import DIRTY, NEWEST, SCHEMA, Code, Shown
from tracekit.machine.reconstruct.rows import MM
from tracekit.machine.timeline import Kind

READ, EXCLUSIVE = 28, 30  # 6.12's types of a shared and of a writable entry
BASE, PAGES = 0x7F00_0000_0000, 16
P = 100
FORK = 0x01200011 & ~0x01000000
ANON = 0x22


class Stream:
    """Writes down what happens, one event after the other."""

    def __init__(self):
        self.cycle, self.marks = [], []
        self.clock, self.row = itertools.count(1), itertools.count()
        self.pids = itertools.count(P + 1)
        self.pfn = itertools.count(0x1000)
        self.add(Code.EXEC, P, P)

    def add(self, code, tid, *arguments, ret=0, to=None):
        now = next(self.clock)
        padded = [*arguments, *[0] * (6 - len(arguments))]
        (self.cycle if to is None else to).append((now, now, int(code), tid, *padded, ret))

    def mmap(self, tid=P, *, at=BASE, pages=PAGES, flags=ANON, fd=0):
        self.add(Code.MMAP, tid, 0, pages * 4096, 3, flags, fd, 0, ret=at)

    def fork(self, parent=P, *, until_newtask=True):
        child = next(self.pids)
        self.add(Code.CLONE, parent, FORK)
        if until_newtask:
            self.add(Code.NEWTASK, parent, child, FORK)
        return child

    def write(self, tid, page=0):
        self.add(Code.FAULT, tid, BASE + page * 4096, 6)

    def read(self, tid, page=0):
        self.add(Code.FAULT, tid, BASE + page * 4096, 4)

    def exit(self, tid):
        self.add(Code.EXIT, tid)
        self.add(Code.EXIT_MMAP, tid)

    def start(self, target=P, by=P):
        self.add(Code.CALL, by, target)
        self.add(Code.EDGE, by, next(self.row), 0, 0, 0, 1, 3, to=self.marks)

    def end(self, by=P):
        self.add(Code.EDGE, by, next(self.row), 0, 0, 0, 0, 3, to=self.marks)

    def set(self, pfn, pages=(0,), *, kind=READ, by=P, order=0, dirty=True, whole=0):
        entry = kind + DIRTY * dirty
        for page in pages:
            self.add(Code.SET, by, next(self.row), (BASE >> 12) + page, pfn, order, entry, whole, to=self.marks)

    def restore(self, pfn, pages=(0,), *, by=P, order=0, whole=0):
        for page in pages:
            self.add(Code.RESTORE, by, next(self.row), (BASE >> 12) + page, pfn, order, 0, whole, to=self.marks)

    def move(self, *, sets, restores, target=P, kind=READ):
        self.start(target)
        src, dst = next(self.pfn), next(self.pfn)
        self.set(src, [0] * sets, kind=kind)
        self.restore(dst, [0] * restores)
        self.end()

    def walks(self, version=NEWEST):
        """[(kind of its visits, [space, …], certain)] of each walk; spaces are numbered as they first appear."""
        frame = [pl.DataFrame(rows, schema=SCHEMA, orient="row") for rows in (self.cycle, self.marks)]
        faults = bool((frame[0]["code"] == Code.FAULT).any())
        self.taken = take(*frame, Shown.of(frame[0], faults=faults, complete=True)._replace(version=version))
        found, numbers = [], {}
        for made in self.taken.made:
            if made.kind in (Kind.TRY, Kind.REMOVE):
                found.append(("try" if made.kind == Kind.TRY else "remove", [], made.sure))
            else:
                space = None if made.mm is None else (made.mm - MM) >> 12
                found[-1][1].append(None if space is None else numbers.setdefault(space, len(numbers)))
        return found

    def visits(self):
        return [(kind, len(spaces), sure) for kind, spaces, sure in self.walks()]

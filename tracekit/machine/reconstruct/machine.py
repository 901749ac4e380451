"""The replay of the life cycle: one event after the other, each changing what is known of the address spaces."""

from collections.abc import Callable
from errno import EFAULT, ENOMEM
from itertools import compress

from tracekit.machine.reconstruct import faults, spaces
from tracekit.machine.reconstruct.events import CLONE_VFORK, CLONE_VM, LIKELY, MAP_ANONYMOUS, Code, Shown
from tracekit.machine.reconstruct.faults import PAGE_SHIFT
from tracekit.machine.reconstruct.folios import image_of
from tracekit.machine.reconstruct.prune import Migrated
from tracekit.machine.reconstruct.spaces import AROUND
from tracekit.machine.reconstruct.state import EVERYWHERE, Space
from tracekit.machine.reconstruct.vma import File, Vma
from tracekit.machine.reconstruct.whose import Whose

Handler = Callable[["Event"], None]
Event = tuple[int, ...]  # code, tid, a … f, ret: columns of events.SCHEMA

CLONE_CHILD_SETTID = 0x0100_0000
_MREMAP_FIXED = 2  # uapi/linux/mman.h
_CHECKS_FIRST_SINCE = (6, 17)  # mremap() checks what is to be moved before it unmaps what is in its way (mm/mremap.c)
_DONE = frozenset((0, -ENOMEM))  # by mprotect() and madvise(): ENOMEM says that part of the range is not mapped


class Life:
    """Tasks and address spaces as they come and go.

    Attributes:
        epoch: losses of events so far.
        now: number of the event being taken.
        stirred: number of the latest that is neither fault nor entry.
        alone: number of the latest that is not in a block of entries.
        changed: number of the latest that took VMAs out of trees.
        mapped_files: how many mappings there are of files that only the number of a descriptor tells.
        space_of: the address space of a thread.
        target: of a thread, the process whose memory its system call moves; 0: its own.
        whose: tells whose a page may be where nothing else does.
        faults: whether the trace has page faults.
        complete: whether the trace has the calls that map and unmap; without them no tree is certain.
        heap: whether it has brk().
        unmaps_first: whether mremap() unmaps what is in the way before it looks at what is to be moved.
        pages, around: those that migrate, and their neighbourhoods: no other need be followed.
        large: those of large folios.
        huge: whether the trace has folios of a PMD, so that reads may map the one of zeros.
    """

    def __init__(self, moved: Migrated, shown: Shown, *, indexed: bool = True) -> None:
        pages = moved.pages.tolist()
        self.now = 0
        self.stirred = self.alone = 0
        self.pages, self.large = set(pages), frozenset(compress(pages, moved.large.tolist()))
        self.huge = moved.huge
        self.around = {page + near for page in set((moved.pages // AROUND).tolist()) for near in (-1, 0, 1)}
        self.space_of: dict[int, Space] = {}
        self.target: dict[int, int] = {}
        self.whose = Whose(indexed=indexed)
        self.faults, self.exit_mmap, self.exec_side_band, self.complete, self.mapped_files, self.heap, version = shown
        self.unmaps_first = version is not None and version < _CHECKS_FIRST_SINCE
        self.epoch = 0
        self.changed = 0
        self.exiting: set[int] = set()
        self.vforked: set[int] = set()
        self.parent_of: dict[int, int] = {}
        self.flags: dict[int, int] = {}
        self.child_tid: dict[int, int] = {}
        self.cloning: dict[int, Space] = {}
        self.files: dict[object, File] = {}

    def handlers(self) -> dict[Code, Handler]:
        """What takes which event."""
        return {
            Code.FAULT: self.fault,
            Code.MMAP: self.mmap,
            Code.MUNMAP: self.munmap,
            Code.MPROTECT: self.mprotect,
            Code.MADVISE: self.madvise,
            Code.MREMAP: self.mremap,
            Code.BRK: self.brk,
            Code.CLONE: self.clone,
            Code.CLONE3: self.clone,
            Code.NEWTASK: self.newtask,
            Code.FORK: self.fork,
            Code.FORKED: self.forked,
            Code.CLONE_ENDS: self.clone_ends,
            Code.EXEC: self.exec,
            Code.EXIT_BEGINS: self.exit_begins,
            Code.EXIT: self.exit,
            Code.EXIT_MMAP: self.exit_mmaps,
            Code.CALL: self.call,
            Code.MAP: self.map,
            Code.TASK: self.task,
            Code.LOST: self.lose,
        }

    def space(self, tid: int) -> Space:
        """The address space of ``tid``, which is past its fault; one of unknown content if it is seen first."""
        found = self.space_of.get(tid)
        if found is not None:
            found.faulting.pop(tid, None)
        else:
            found = self.space_of[tid] = spaces.new_image(known=False, large=self.large)
            found.epoch = -1 if self.epoch else 0  # it is older than the last loss
        return found

    def fault(self, event: Event) -> None:
        """A page fault."""
        faults.take(self, event[1], (event[2],), (event[3],))

    def mmap(self, event: Event) -> None:
        """A new VMA; its file is told by the number of the descriptor within a family of forks."""
        tid, _, length, protection, flags, fd, offset, ret = event[1:]
        if not 0 < ret < 1 << 62:
            return
        space, start = self.space(tid), ret >> PAGE_SHIFT
        shared = flags & spaces.MAP_TYPE in spaces.MAP_SHARED
        file = None
        if not flags & MAP_ANONYMOUS:
            file = self.files.setdefault((space.fd_family, fd), File(sure=False))
        elif shared:
            file = File(sure=True)
        vma = Vma(space, start, start + _pages(length), offset >> PAGE_SHIFT)
        vma.shared, vma.flags = shared, protection | flags & spaces.MAP_FLAGS
        vma = spaces.mmap(space, vma, file, self.now)
        if not self.faults and not shared:
            spaces.prepare(space, vma)  # who maps memory writes to it, as a rule before it forks

    def munmap(self, event: Event) -> None:
        """Unmap, if the call succeeded."""
        tid, start, length = event[1:4]
        if not event[-1]:
            spaces.munmap(self.space(tid), start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + _pages(length), self.now)

    def mprotect(self, event: Event) -> None:
        """Another protection, which splits VMAs and makes others one; up to a hole where there is one."""
        tid, start, length, protection = event[1:5]
        if event[-1] not in _DONE:
            return
        space, page, end = self.space(tid), start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + _pages(length)
        if event[-1]:
            end = space.mapped_until(page, end)
        elif space.at(page) is space.rest and page < space.data:
            faults.wrote_data(space, page)  # the dynamic linker, or static start-up code, closes the relocated part
        kept = ~spaces.PROTECTION
        spaces.change(space, page, end, lambda flags: flags & kept | protection)

    def madvise(self, event: Event) -> None:
        """Split, zap or neither, by behaviour; of a range with holes, what is mapped."""
        tid, start, length, behaviour = event[1:5]
        if event[-1] not in _DONE:
            return
        space, first, end = self.space(tid), start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + _pages(length)
        if behaviour in spaces.ZAPS:
            spaces.zap(space, first, end, self.now)
        elif behaviour in spaces.CHANGES_FLAGS:
            spaces.change(space, first, end, lambda flags: spaces.advised(flags, behaviour))

    def mremap(self, event: Event) -> None:
        """Move or resize; what was at the place to move to may be gone, even where it fails."""
        tid, start, old, new, flags, new_start = event[1:7]
        ret = event[-1]
        if ret == -EFAULT and flags & _MREMAP_FIXED and self.unmaps_first:
            space, to = self.space(tid), new_start >> PAGE_SHIFT
            if space.overlapping(start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + 1):
                spaces.munmap(space, to, to + _pages(new), self.now)
        elif 0 < ret < 1 << 62:
            first, to = start >> PAGE_SHIFT, ret >> PAGE_SHIFT
            old_range, new_range = range(first, first + _pages(old)), range(to, to + _pages(new))
            spaces.mremap(self.space(tid), old_range, new_range, self.now)

    def brk(self, event: Event) -> None:
        """The heap grows or shrinks; one whose beginning was not seen stays in the stand-in for the image."""
        tid, _, before = event[1:4]
        ret = event[-1]
        if not before or ret <= 0:
            return
        space, old, new = self.space(tid), _pages(before), _pages(ret)
        if not space.heap and space.parent is None and space.forked < 0 and space.rest is not None:
            space.heap = space.rest.known  # exec left none, and no one else has what its neighbours are linked to
        if new > old and space.heap:
            vma = Vma(space, old, new, 0)
            vma.flags = spaces.HEAP
            vma = spaces.mmap(space, vma, None, self.now)
            if not self.faults:
                spaces.prepare(space, vma)
        elif new < old:
            (spaces.munmap if space.heap else spaces.zap)(space, new, old, self.now)

    def clone(self, event: Event) -> None:
        """A fork begins: from here on the child's VMAs may be in the trees."""
        tid, flags, child_tid = event[1:4]
        self.flags[tid] = flags
        self.child_tid[tid] = child_tid if flags & CLONE_CHILD_SETTID else 0
        if not flags & CLONE_VM:
            child = self.cloning[tid] = spaces.fork(self.space(tid), self.now)
            child.born = EVERYWHERE

    def newtask(self, event: Event) -> None:
        """copy_process() is through: a thread, or a process with an address space of its own."""
        self._made(*event[1:4])

    def _made(self, tid: int, child: int, flags: int) -> None:
        space = self.space(tid)
        made = self.cloning.pop(tid, None)
        if flags & CLONE_VM:
            if made is not None:
                spaces.unlink(made)
            space.users += 1
            self.space_of[child] = space
            if flags & CLONE_VFORK:
                self.vforked.add(child)
            return
        made = made or spaces.fork(space, self.now)
        made.born = self.now
        self.space_of[child] = made
        if self.child_tid.get(tid):  # schedule_tail() writes it, as the child: no fault of user mode
            faults.kernel_wrote(self, made, self.child_tid[tid] >> PAGE_SHIFT, self.now + 1)

    def fork(self, event: Event) -> None:
        """sched_process_fork says nothing that task_newtask did not; where that is missing, the system call does."""
        tid, child = event[1:3]
        flags = self.flags.pop(tid, 0)
        if child not in self.space_of or self.space_of[child].users == 0:
            self._made(tid, child, flags)

    def forked(self, event: Event) -> None:
        """What the parent had written was shared for a while."""
        self.space(event[1]).forked = self.now

    def clone_ends(self, event: Event) -> None:
        """A fork that failed leaves nothing."""
        if event[-1] < 0 and (made := self.cloning.pop(event[1], None)) is not None:
            spaces.unlink(made)

    def exec(self, event: Event) -> None:
        """A new image, known from its beginning on; the old one goes when no one else uses it."""
        tid, _, shown_by = event[1:4]
        likely = shown_by == LIKELY
        if not likely and bool(shown_by) != self.exec_side_band:
            return
        old = self.space_of.get(tid)
        if likely and old is not None and tid not in self.vforked:
            if old.users > 1:
                return  # a thread, given a name
            spaces.doubt(old)
        self.vforked.discard(tid)
        new = self.space_of[tid] = spaces.new_image(known=not likely, large=self.large)
        new.epoch = self.epoch
        if old is not None:
            self._leave(old)

    def exit_begins(self, event: Event) -> None:
        """exit_group(): soon the VMAs will go, which of them when is not seen."""
        tid = event[1]
        space = self.space_of.get(tid)
        if space is not None and space.users == 1:
            space.dying = min(space.dying, self.now)

    def exit(self, event: Event) -> None:
        """The task ends; its address space with the last of them, at exit_mmap() where that was recorded."""
        tid = event[1]
        space = self.space_of.get(tid)
        if space is None:
            return
        space.faulting.pop(tid, None)
        if self.exit_mmap and space.users == 1:
            space.dying = min(space.dying, self.now)
            self.exiting.add(tid)
            return
        del self.space_of[tid]
        self._leave(space)

    def exit_mmaps(self, event: Event) -> None:
        """All VMAs are out of the trees (mm/mmap.c)."""
        tid = event[1]
        space = self.space_of.get(tid)
        if space is not None and (tid in self.exiting or space.dying <= self.now):
            self.exiting.discard(tid)
            del self.space_of[tid]
            self._leave(space)

    def _leave(self, space: Space) -> None:
        space.users -= 1
        if space.users <= 0:
            self.changed = self.now
            self.whose.left(space)
            spaces.unlink(space)

    def lose(self, _event: Event) -> None:
        """Events were lost: what was there may have changed unseen, what begins now will not have (DESIGN.md §2)."""
        self.epoch += 1

    def call(self, event: Event) -> None:
        """Whose pages a system call moves; mbind has an address in place of a process, and a length."""
        tid, pid, length = event[1:4]
        if tid in self.space_of:
            self.space(tid)
        self.target[tid] = 0 if length else pid

    def map(self, event: Event) -> None:
        """An executable mapping that perf saw: of the image of exec, of a library, or, without a file, the vDSO."""
        pid, addr, length, pgoff, inode = event[1:6]
        space, start = self.space(pid), addr >> PAGE_SHIFT
        self.whose.mapped(space, start)
        if not inode:
            return
        file = self.files.setdefault(("inode", inode), File(sure=True))
        if not any(vma.file is file for vma in space.maps):
            image_of(space, start, start + _pages(length), pgoff >> PAGE_SHIFT, file)

    def task(self, event: Event) -> None:
        """A task from before the trace."""
        tid, pid, ppid = event[1:4]
        if tid != pid:
            space = self.space(pid)
            space.users += 1
            self.space_of[tid] = space
        else:
            self.parent_of[pid] = ppid

    def settle(self) -> None:
        """The tasks from before the trace are all known: one whose image lies where its parent's does was forked.

        exec places an image at random, so only fork makes two of them alike.
        """
        for pid, ppid in sorted(self.parent_of.items()):
            space, parent = self.space_of.get(pid), self.space_of.get(ppid)
            if space is None or parent is None or not space.maps or space.users != 1:
                continue
            if [(vma.start, vma.file) for vma in space.maps] == [(vma.start, vma.file) for vma in parent.maps]:
                spaces.unlink(space)
                child = self.space_of[pid] = spaces.fork(parent, self.now)
                parent.forked = -1
                self.whose.became(space, child)


def _pages(length: int) -> int:
    return (length + 4095) >> PAGE_SHIFT

"""Migration entries → rmap walks: which sets and restores are one folio's.

One try_to_migrate() walk is a run of sets of one task whose source PFNs lie in one folio; one remove_migration_ptes()
walk is a run of its restores whose new PFNs do (MODEL.md C.4). A restore belongs to the walk that took its page away,
where it points there still (undone, or split), else to the oldest open walk of its task that set an entry at its
address.
"""

from collections import Counter, deque

from tracekit.machine.reconstruct.batch import Batch, Planner
from tracekit.machine.reconstruct.blocks import Block
from tracekit.machine.reconstruct.events import PMD, Code
from tracekit.machine.reconstruct.identify import Identify
from tracekit.machine.reconstruct.machine import Event, Life
from tracekit.machine.reconstruct.moved import Moved
from tracekit.machine.reconstruct.plain_rows import PlainRows
from tracekit.machine.reconstruct.resolve import resolve_remove, resolve_try
from tracekit.machine.reconstruct.rows import Made
from tracekit.machine.reconstruct.walk import Walk


class Open:
    """What is open in one task.

    Attributes:
        walk: the walk it is in.
        reason: of its migrate_pages().
        part: the latest remove walk of a part of a folio that is being split.
        tried: try walks, oldest first.
        at_page: page → those that set an entry there, oldest first.
        at_pfn: source PFN → the latest that took it away.
        batches: try walks that were taken at once, younger than all these.
    """

    def __init__(self) -> None:
        self.walk: Walk | None = None
        self.reason = 0
        self.part: Walk | None = None
        self.tried: list[Walk] = []
        self.at_page: dict[int, deque[Walk]] = {}
        self.at_pfn: dict[int, Walk] = {}
        self.batches: list[Batch] = []

    def apart(self) -> "Open":
        """With none in batches any more."""
        for batch in self.batches:
            for walk in batch.rest():
                self.add(walk)
        self.batches.clear()
        return self

    def add(self, walk: Walk) -> None:
        """A try walk is over."""
        self.tried.append(walk)
        for _, page, pfn, _ in walk.entries:
            self.at_pfn[pfn] = walk
            queue = self.at_page.setdefault(page, deque())
            if not queue or queue[-1] is not walk:
                queue.append(walk)

    def source(self, page: int, pfn: int) -> Walk | None:
        """The try walk whose entry at ``page`` is replaced by a PTE of ``pfn``."""
        here = self.at_pfn.get(pfn)
        if here is not None and not here.done:
            return here
        queue = self.at_page.get(page)
        while queue:
            if not queue[0].done and not queue[0].split:
                return queue[0]
            queue.popleft()
        return None

    def back(self, walk: Walk) -> Walk | None:
        """The try walk of this migrate_pages() whose folio came back, whole or split, of which ``walk`` takes a part.

        It was not let go of since, whatever stands at its address now.
        """
        before = self.at_pfn.get(walk.head)
        return before if before is not None and before.back and before.order >= walk.order else None

    def took(self, pfns: list[int]) -> bool:
        """Whether a try walk that may still be open took any of them away."""
        return any(not taken.isdisjoint(pfns) for taken in (self.at_pfn.keys(), *(one.heads for one in self.batches)))

    def clear(self) -> None:
        """migrate_pages() is over: nothing of it is left."""
        self.tried, self.at_page, self.at_pfn = [], {}, {}


class Walker:
    """Takes the migration entries of all tasks.

    Attributes:
        made: the rows that stand for the visits.
        why: walks that are not certain, by reason.
    """

    def __init__(self, life: Life, identify: Identify) -> None:
        self.life, self.identify = life, identify
        self._made = Made()
        self._plain = PlainRows(self._made)
        self.why: Counter[str] = Counter()
        self.open: dict[int, Open] = {}
        self._latest: list[Batch] = []  # since anything but a block of entries came

    @property
    def made(self) -> Made:
        """See above. Rows at the same place are in the order in which they were made: those put by come before."""
        self._plain.close()
        return self._made

    def _of(self, tid: int) -> Open:
        return (self.open.get(tid) or self.open.setdefault(tid, Open())).apart()

    def block(self, block: Block) -> None:
        """All the plain walks that it begins with at once, the others one by one."""
        task = self.open.get(block.tid)
        taken = 0
        if task is not None and task.walk is None and task.part is None:
            taken = (self._sets if block.code == Code.SET else self._restores)(task, block)
        self.life.now += taken
        one_by_one = self.set if block.code == Code.SET else self.restore
        for event in block.events(taken) if taken < len(block.rows) else ():
            self.life.now += 1
            one_by_one(event)

    def settle(self) -> None:
        """Something else than a block of entries comes."""
        for batch in self._latest:
            batch.settle()
        self._latest.clear()

    def _sets(self, task: Open, block: Block) -> int:
        """How many entries of the block the walks have that were taken."""
        target, life = self.identify.target(block.tid, task.reason), self.life
        if target is None or not life.faults or not life.complete:
            return 0
        walks = Planner(life, target, self.identify.read_type).plain(block)
        batch = Batch(block, walks, life.now + 1, task.reason)
        if not walks or not batch.is_new(task.at_pfn, task.batches):
            return 0
        for one in walks:
            first, hits = one.first, one.hits
            self._plain.try_walk(block.pfns[first], block.pages[first], one.tree, hits, block.rows[first : one.end])
        self._plain.settle()
        task.batches.append(batch)
        self._latest.append(batch)
        return walks[-1].end

    def _restores(self, task: Open, block: Block) -> int:
        batch = next((one for one in task.batches if one.done < len(one.walks)), None)
        if batch is None:
            return 0
        begun, taken = batch.done, 0
        clear = task.at_page.keys().isdisjoint(block.pages) and not task.took(block.pfns)
        for first, end in zip(block.starts, block.starts[1:], strict=False):
            one = batch.ends(block, first, end, self.life)
            page, pfn = block.pages[first], block.pfns[first]
            if one is None or (not clear and (page in task.at_page or task.took([pfn]))):
                break
            source = batch.block.pfns[one.first]
            self._plain.remove_walk((pfn, source), page, one.tree, one.hits, block.rows[first:end])
            batch.done += 1
            taken = end
        self._plain.settle()
        ended = batch.walks[begun : batch.done]
        pfns = [block.pfns[first] for first in block.starts[: len(ended)]]
        self.identify.moved.put(pfns, [one.folio for one in ended], [one.pgoff for one in ended])
        return taken

    def set(self, event: Event) -> None:
        """A migration entry was set."""
        tid, row, page, pfn, order, entry_type, whole = event[1:8]
        task, head = self._of(tid), pfn >> order << order
        walk = task.walk
        if walk is None or walk.source is not None or walk.head != head or walk.order != order:
            self._close(tid, task)
            self._end_split(task)
            walk = task.walk = Walk(head, order, self.life.now)
            walk.reason = task.reason
        walk.entries.append((row, page, pfn, 1 << order if whole == PMD else 1))
        walk.types.append(entry_type)
        walk.until = self.life.now
        if event[-1]:
            self._close(tid, task)

    def restore(self, event: Event) -> None:
        """A migration entry was replaced."""
        tid, row, page, pfn, order, _, whole = event[1:8]
        task = self._of(tid)
        walk = task.walk
        if walk is None or walk.source is None or pfn >> walk.order << walk.order != walk.head:
            self._close(tid, task)
            source = task.source(page, pfn)
            if source is None or (task.part is not None and task.part.source is not source):
                self._end_split(task)
            if source is None:
                return
            # a page of a large folio that came back as a small one is what a split left
            here = pfn >> source.order << source.order == source.head
            size = min(order, source.order) if here else source.order
            walk = task.walk = Walk(pfn >> size << size, size, self.life.now)
            walk.source = source
            walk.members = walk.tree()
            if size < source.order:
                self._empty_parts(source, walk, row)
                task.part = walk
        walk.entries.append((row, page, pfn, 1 << walk.order if whole == PMD else 1))
        walk.until = self.life.now
        if event[-1] and not walk.order:
            self._close(tid, task)

    def _end_split(self, task: Open) -> None:
        """What follows the last part of a split folio that anything of was mapped."""
        part, task.part = task.part, None
        if part is not None and part.source is not None:
            end = part.source.head + (1 << part.source.order)
            self._empty_parts(part.source, part, part.entries[-1][0], end)

    def _empty_parts(self, source: Walk, at: Walk, row: int, end: int | None = None) -> None:
        """remap_page() walks every folio that a split left, in order, mapped or not (mm/huge_memory.c).

        Those up to the part ``at``, before ``row``; or, to the ``end`` of the folio, after it.
        """
        for head in range(source.next_part, at.head if end is None else end, 1 << at.order):
            part = Walk(head, at.order, self.life.now)
            part.source, part.sure = source, source.sure
            if part.tree():
                self.made.empty_part(part, row, after=end is not None)
        source.next_part = at.head + (1 << at.order) if end is None else end

    def edge(self, event: Event) -> None:
        """migrate_pages() starts or ends: what was set and not restored by now was all zapped."""
        tid, row, begins, reason = event[1], event[2], event[6], event[7]
        task = self._of(tid)
        self._close(tid, task)
        self._end_split(task)
        for source in task.tried:
            if not source.done and not source.split and source.found is not None:
                self.made.nothing(source, row)
        task.clear()
        task.reason = reason if begins else 0

    def finish(self) -> None:
        """The trace is over."""
        for tid, task in self.open.items():
            self._close(tid, task)
            self._end_split(task)

    def forget(self) -> None:
        """Let go of all that the machine knew: what was made of it stays."""
        for space in self.life.space_of.values():
            space.own.clear()
        self.life.whose.forget()
        self.identify.moved = Moved()

    def _close(self, tid: int, task: Open) -> None:
        walk, task.walk = task.walk, None
        if walk is None:
            return
        if walk.source is None:
            identity = self.identify.of(tid, walk, task.back(walk))
            walk.found = identity.found
            done = resolve_try(walk, identity, self.life)
            task.add(walk)
        else:
            done = resolve_remove(walk, self.life)
            self._moved(walk, walk.source)
        walk.sure = not done.why
        if done.why:
            self.why[done.why] += 1
        self.made.walk(walk, done.visited, done.member)

    def _moved(self, walk: Walk, source: Walk) -> None:
        here = walk.head >> source.order << source.order == source.head
        split = here and walk.order < source.order
        source.back |= here
        source.done |= not split
        source.split |= split
        if source.found is not None and (split or not here):
            self.identify.moved.put([walk.head], [source.found.folio], [walk.pgoff()])

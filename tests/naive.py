"""The naive twin of the machine: dicts and loops, one event at a time, written from the specification.

The specification is MODEL.md A.0 (the two rmap walks), A.1 and D.2 (the counter), C.2 and C.4 (probes and pairing), and
what the columns of the operations, episodes and calls tables mean by their own descriptions. It takes nothing from the
machine's code but the names of operations, so that an agreement means something.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

LIMIT = 16_777_215  # A.1, E0.12: a 24-bit count


class Event(NamedTuple):
    """One record of a trace; its place in the list of events is its ``seq``."""

    task: int
    time_ns: int
    name: str  # system:event
    fields: dict = {}  # noqa: RUF012 -- read only
    cpu: int = 0
    comm: str = "forkcow"


KINDS = {
    "kprobes:try_to_migrate": "try",
    "kprobes:try_to_migrate_ret": "try_return",
    "kprobes:try_to_migrate_one": "try_visit",
    "migrate:set_migration_pte": "set",
    "thp:set_migration_pmd": "set",
    "kprobes:remove_migration_ptes": "remove",
    "kprobes:remove_migration_pte": "remove_visit",
    "migrate:remove_migration_pte": "restore",
    "thp:remove_migration_pmd": "restore",
    "kprobes:folio_mc_copy": "copy",
    "migrate:mm_migrate_pages_start": "migrate_start",
    "migrate:mm_migrate_pages": "migrate_end",
}
OPERATION = {
    "try_visit": "try_to_migrate.vma_visit",
    "remove_visit": "remove_migration_ptes.vma_visit",
    "set": "migration_entry.set",
    "restore": "migration_entry.restore",
    "copy": "folio.copy",
}
PMD_ORDER = 9  # 4 KiB pages
FORK_LINK = "kprobes:anon_vma_fork"
FORK_ENDS = ("sched:sched_process_fork", "syscalls:sys_exit_clone", "syscalls:sys_exit_clone3")


@dataclass(eq=False)
class Entry:
    """A migration entry set or restored."""

    seq: int
    event: Event
    visit: "Visit"
    partner: "Entry | None" = None

    @property
    def order(self):
        return self.event.fields.get("order", PMD_ORDER)


@dataclass(eq=False)
class Visit:
    """One call of rmap_one."""

    seq: int
    event: Event
    walk: "Walk"
    position: int
    entries: list = field(default_factory=list)

    @property
    def slot(self):
        mm = self.event.fields.get("mm")
        return self.event.fields["vma"] if mm is None else mm


@dataclass(eq=False)
class Walk:
    """One rmap walk of a folio; ``source`` is where a remove walk's entries were set, as far as is known."""

    phase: str  # try, remove
    task: int
    folio: int
    seq: int
    place: int  # of its first event among all events in the order of the timeline
    start_ns: int
    call: "Call | None"
    visits: list = field(default_factory=list)
    last_ns: int = 0
    return_ns: int | None = None  # when try_to_migrate returned
    tried: "Walk | None" = None

    @property
    def entries(self):
        return [entry for visit in self.visits for entry in visit.entries]

    @property
    def order(self):
        return max((entry.order for entry in self.entries), default=None)


@dataclass(eq=False)
class Call:
    """A system call, a migrate_pages() or a stretch between two marks."""

    seq: int
    kind: str
    name: str
    is_named: bool
    task: int
    start_ns: int
    parent: "Call | None"
    migrates: bool = False
    lost_inside: bool = False  # the end of a migrate_pages() right inside it was never seen
    end_seq: int | None = None
    end_ns: int | None = None
    counts: dict = field(default_factory=lambda: {"tracepoints": 0, "kprobes": 0, "kretprobes": 0})


class Operation(NamedTuple):
    """A row of the operations table; None where the table has null."""

    op: str
    seq: int | None
    task: int | None
    position: int | None
    folio: int | None
    order: int | None
    vma: int | None
    mm: int | None
    addr: int | None
    nr_pages: int
    hit: bool | None
    known: bool | None
    moved: bool | None
    window: str | None
    call: int | None  # seq of its start
    episode: int | None


@dataclass(eq=False)
class Episode:
    """One folio's migration."""

    task: int
    tried: Walk | None
    removed: Walk | None
    number: int = -1
    copied: list = field(default_factory=list)  # entries that were restored and never set
    zapped: list = field(default_factory=list)  # entries that were set and never restored

    @property
    def in_migrate_pages(self):
        call = (self.removed or self.tried).call
        if call is None or (call.kind != "migrate_pages" and call.lost_inside):
            return None
        return call.kind == "migrate_pages"

    @property
    def order(self):
        return self.tried.order if self.tried else None

    @property
    def known(self):
        return self.tried is not None and self.removed is not None

    @property
    def stayed(self):
        """Whether the first entry restored points at the page it pointed at before; None: none to tell it."""
        pairs = [entry for entry in self.removed.entries if entry.partner] if self.removed else []
        if not pairs:
            return None
        return source_pfn(pairs[0].partner.event) == present_pfn(pairs[0].event)

    @property
    def moved(self):
        if self.stayed:
            return False
        if self.tried is None or self.removed is None:
            return None
        return self.tried.folio != self.removed.folio


def source_pfn(event):
    """C.3: x86-64 keeps the offset inverted in bits 9..58; above 34 bits of PFN stand A and D."""
    inverted = ~event.fields.get("pte", event.fields.get("pmd")) & (2**64 - 1)
    return (inverted >> 9) & (2**34 - 1)


def present_pfn(event):
    """C.3: x86-64, __pte_needs_invert for PROT_NONE."""
    value = event.fields.get("pte", event.fields.get("pmd"))
    if not value & 1 and value & 0x100:
        value = ~value
    return (value & 0x000F_FFFF_FFFF_F000) >> 12


class Replay(NamedTuple):
    """Operations and episodes in the order of the tables; calls with something migrated in them, by seq."""

    operations: list
    episodes: list
    calls: list
    walks: list
    orphans: dict


class Task:
    """What is open in one task."""

    def __init__(self):
        self.walk = self.visit = None
        self.origin = {}  # folio -> where its contents are from: itself since its try, another since its copy
        self.tries = {}  # folio -> its latest try walk
        self.standing = {}  # (slot, addr) -> the set that stands there
        self.calls = []


def kind_of(event):
    if event.name.startswith("syscalls:sys_enter_"):
        return "syscall_enter"
    if event.name.startswith("syscalls:sys_exit_"):
        return "syscall_exit"
    if event.name == "ftrace:print":
        line = event.fields["buf"].strip()
        return "mark_begin" if line.endswith("_begin") else "mark_end" if line.endswith("_end") else "other"
    return KINDS.get(event.name, "other")


def replay(events):
    """Replay ``events``; their places in the list are their seqs."""
    own = [event.task for event in events if event.name in KINDS]
    rows = sorted((e.task, e.time_ns, seq, e) for seq, e in enumerate(events) if e.task in own)
    tasks = {task: Task() for task in own}
    machine = Machine()
    for place, (task, _, seq, event) in enumerate(rows):
        machine.take(tasks[task], seq, place, event)
    return machine.finish(forks(events))


class Machine:
    """Takes the events one by one."""

    def __init__(self):
        self.seen = []  # (place, seq, event, visit or entry or None, call)
        self.walks = []
        self.calls = []
        self.orphans = {"set_without_visit": 0, "restore_without_visit": 0}

    def take(self, task, seq, place, event):
        kind = kind_of(event)
        source = source_of(event)
        for call in task.calls:
            call.counts[source] += 1
            call.migrates |= event.name in KINDS
        thing = None
        if kind in ("set", "restore"):
            thing = self.entry(task, seq, event, kind)
        elif kind in ("try", "try_visit", "remove", "remove_visit"):
            thing = self.step(task, seq, place, event, kind)
        elif kind != "other":
            if kind == "try_return" and task.walk and task.walk.phase == "try":
                task.walk.return_ns = event.time_ns
            task.walk = task.visit = None  # nothing but visits lies between the visits of a walk
            if kind == "copy":
                task.origin[event.fields["dst"]] = event.fields["src"]
        call = self.edge(task, seq, event, kind)
        if kind in OPERATION:
            self.seen.append((place, seq, event, thing, call))

    def step(self, task, seq, place, event, kind):
        """A walk entered, or one VMA visited."""
        phase = kind.split("_")[0]
        folio = event.fields["dst"] if kind == "remove" else event.fields["folio"]
        walk, visit = task.walk, None
        goes_on = kind.endswith("visit") and walk is not None and (walk.phase, walk.folio) == (phase, folio)
        # a tree holds a VMA once; a KSM page may stand in it at several addresses
        places = [(v.event.fields["vma"], v.event.fields["addr"]) for v in walk.visits] if goes_on else []
        if not goes_on or (kind.endswith("visit") and (event.fields["vma"], event.fields["addr"]) in places):
            call = task.calls[-1] if task.calls else None
            walk = Walk(phase, event.task, folio, seq, place, event.time_ns, call)
            self.walks.append(walk)
            if phase == "try":
                task.origin[folio] = folio
                task.tries[folio] = walk
            else:
                source = event.fields["src"] if kind == "remove" else task.origin.get(folio, folio)
                walk.tried = task.tries.get(source)
        if kind.endswith("visit"):
            visit = Visit(seq, event, walk, len(walk.visits))
            walk.visits.append(visit)
        walk.last_ns = event.time_ns
        task.walk, task.visit = walk, visit
        return visit

    def entry(self, task, seq, event, kind):
        """A migration entry set or restored, in the visit that the task is in."""
        visit = task.visit
        if visit is None or visit.walk.phase != ("try" if kind == "set" else "remove"):
            self.orphans[f"{kind}_without_visit"] += 1
            return None
        entry = Entry(seq, event, visit)
        place = (visit.slot, event.fields["addr"])
        if kind == "set":
            task.standing[place] = entry
        elif place in task.standing:
            entry.partner = task.standing.pop(place)
            entry.partner.partner = entry
            if not any(other.partner for other in visit.walk.entries):
                visit.walk.tried = entry.partner.visit.walk  # the entries know best
        visit.entries.append(entry)
        visit.walk.last_ns = event.time_ns
        return entry

    def edge(self, task, seq, event, kind):
        """The start or the end of a call; returns the innermost call that the event lies in."""
        innermost = task.calls[-1] if task.calls else None
        if kind == "syscall_enter":
            self.leave(task, ("syscall", "migrate_pages"))
            return self.enter(task, seq, event, "syscall", event.name.split("sys_enter_")[1])
        if kind in ("mark_begin", "mark_end"):  # its task is in user space, or in the write() that brings it
            task.calls = [call for call in task.calls if call.kind == "mark" or call.name == "write"]
            innermost = task.calls[-1] if task.calls else None
        if kind == "mark_begin":
            return self.enter(task, seq, event, "mark", "mark:" + event.fields["buf"].strip()[: -len("_begin")])
        if kind == "migrate_start":
            if innermost is not None and innermost.kind == "migrate_pages":
                task.calls.pop()
            return self.enter(task, seq, event, "migrate_pages", work_name(event))
        ends = {
            "syscall_exit": ("syscall", event.name.split("sys_exit_")[-1]),
            "mark_end": ("mark", "mark:" + event.fields.get("buf", "").strip()[: -len("_end")]),
            "migrate_end": ("migrate_pages", None),
        }
        if kind in ends:
            of, name = ends[kind]
            for depth in reversed(range(len(task.calls))):
                if task.calls[depth].kind == of and name in (None, task.calls[depth].name):
                    innermost = task.calls[depth]
                    innermost.end_seq, innermost.end_ns = seq, event.time_ns
                    # a mark outlives the write() that it came through, and that write() the mark that it ends
                    over = [call for call in task.calls[depth:] if (call.kind == "mark") == (of == "mark")]
                    task.calls = [call for call in task.calls if call not in over]
                    return innermost
            if kind == "syscall_exit":  # of another call than the one it is in, whose own exit was lost before
                self.leave(task, ("syscall", "migrate_pages"))
        return innermost

    def enter(self, task, seq, event, kind, name):
        around = [call for call in task.calls if kind != "mark" or call.kind == "mark"]
        parent = around[-1] if around else None
        reasons = (None, "syscall_or_cpuset", "mempolicy_mbind")
        asked = kind == "migrate_pages" and event.fields.get("reason_name") in reasons
        call = Call(seq, kind, name, not (asked and parent), event.task, event.time_ns, parent)
        call.migrates = event.name in KINDS
        self.calls.append(call)
        task.calls.append(call)
        return call

    def leave(self, task, kinds):
        task.calls = [call for call in task.calls if call.kind not in kinds]

    def finish(self, links):
        for call in self.calls:
            if call.kind == "migrate_pages" and call.end_seq is None and call.parent is not None:
                call.parent.lost_inside = True
        episodes = self.episodes()
        of_walk = {}
        for episode in episodes:
            for walk in (episode.tried, episode.removed):
                if walk is not None:
                    of_walk.setdefault(walk, episode)
        for walk in self.walks:
            for entry in walk.entries:
                if entry.partner is None and walk.phase == "remove":
                    of_walk[walk].copied.append(entry)
                elif entry.partner is None and of_walk[walk].removed is not None:
                    of_walk[walk].zapped.append(entry)
        operations = []
        for _, seq, event, thing, call in sorted(self.seen, key=lambda seen: seen[0]):
            operations.append(self.observed(seq, event, thing, ended(call, event.time_ns), of_walk))
            if isinstance(thing, Entry) and (inferred := infer(thing, of_walk[thing.visit.walk], links)):
                operations.append(inferred)
        return Replay(operations, episodes, self.calls, self.walks, self.orphans)

    def episodes(self):
        followed = {walk.tried for walk in self.walks if walk.phase == "remove"}
        found = [Episode(w.task, w.tried, w) for w in self.walks if w.phase == "remove"]
        found += [Episode(w.task, w, None) for w in self.walks if w.phase == "try" and w not in followed]
        found.sort(key=lambda e: (e.task, (e.tried or e.removed).place, e.removed.place if e.removed else -1))
        for number, episode in enumerate(found):
            episode.number = number
            walk = episode.removed or episode.tried
            walk.call = ended(walk.call, walk.start_ns)
        return found

    def observed(self, seq, event, thing, call, of_walk):
        visit = thing.visit if isinstance(thing, Entry) else thing
        episode = of_walk[visit.walk] if visit else None
        is_visit = isinstance(thing, Visit)
        at = (visit.event if visit else event).fields
        return Operation(
            OPERATION[kind_of(event)],
            seq,
            event.task,
            visit.position if is_visit else None,
            at.get("folio", at.get("dst")),
            episode.order if episode else None,
            at.get("vma"),
            at.get("mm"),
            event.fields.get("addr"),
            len(thing.entries) if is_visit else 1,
            bool(thing.entries) if is_visit else None,
            episode.known if episode else None,
            episode.moved if episode else None,
            None,
            call.seq if call else None,
            episode.number if episode else None,
        )


def ended(call, time_ns):
    """The innermost call around what happened then, of those seen to end: how far another one goes is not known."""
    while call is not None and (call.end_ns is None or call.end_ns < time_ns):
        call = call.parent
    return call


def source_of(event):
    if not event.name.startswith("kprobes:"):
        return "tracepoints"
    return "kretprobes" if event.name.endswith("_ret") else "kprobes"


def work_name(event):
    reason = event.fields.get("reason_name")
    if reason == "compaction" and event.comm.startswith("kcompactd"):
        return "kcompactd"
    names = {"numa_misplaced": "numa_balancing", "demotion": "reclaim", None: "migrate_pages()"}
    return names.get(reason, reason)


def forks(events):
    """(vma of the child, when it was linked, when that fork had certainly copied its entries or None)."""
    seen = [(e.task, e.time_ns, seq, e) for seq, e in enumerate(events) if e.name in (*FORK_ENDS, FORK_LINK)]
    seen.sort()
    links = []
    for at, (task, time_ns, _, event) in enumerate(seen):
        if event.name == FORK_LINK:
            after = seen[at + 1] if at + 1 < len(seen) and seen[at + 1][0] == task else None
            links.append((event.fields["vma"], time_ns, after[1] if after else None))
    return links


def infer(entry, episode, links):
    """What no event shows: an entry copied by fork, collected by migrate_vma, or zapped."""
    if entry in episode.copied:
        collected = episode.in_migrate_pages is False
        op = "migration_entry.collect" if collected else "migration_entry.fork_copy"
        window = copy_window(entry, episode, links)
    elif entry in episode.zapped:
        op, window = "migration_entry.zap", "unknown"
    else:
        return None
    at = entry.visit.event.fields
    facts = (episode.order, at["vma"], at.get("mm"), entry.event.fields["addr"], 1, None, episode.known, episode.moved)
    return Operation(op, None, None, None, None, *facts, window, None, episode.number)


def copy_window(entry, episode, links):
    """When an entry was copied, against the walk that set the folio's entries: that ends before it returns."""
    linked = [link for link in links if link[0] == entry.visit.event.fields["vma"] and link[1] <= entry.event.time_ns]
    if not linked or episode.tried is None:
        return "unknown"
    _, from_ns, until_ns = max(linked, key=lambda link: link[1])
    walk = episode.tried
    if from_ns >= walk.last_ns:
        return "after_walk"
    if until_ns is not None and until_ns <= (walk.return_ns if walk.return_ns is not None else walk.last_ns):
        return "during_walk"
    return "unknown"


class Judgement(NamedTuple):
    """What a policy leaves: seqs of the events that it spares, and what it makes unsafe or leaves open."""

    spared: set
    stale: int = 0
    open: dict = {}  # noqa: RUF012 -- read only


def as_traced(_replay):
    return Judgement(set())


def upper_bound(replayed):
    """Every visit that finds nothing."""
    return Judgement({visit.seq for walk in replayed.walks for visit in walk.visits if not visit.entries})


def counter_early_exit(replayed, links=(), *, counter="exact", scope="small", device_path="include"):
    """A.1 and D.2, seed 0: stop when the count is zero, asked after a visit; any other walk goes on to its end.

    ``links``: of ``forks``; they tell which copies came after the count began.
    """
    spared, stale, unknown_copies, unknown_zaps = set(), 0, 0, 0
    cleared = set()
    for episode in replayed.episodes:
        collected = [e for e in episode.copied if episode.in_migrate_pages is False]
        copied = [e for e in episode.copied if e not in collected]
        # the first remove walk clears the count: another one after the same try walk (a split's) finds none
        entries = len(episode.tried.entries) if episode.tried and episode.tried not in cleared else 0
        cleared.add(episode.tried)
        windows = [copy_window(entry, episode, links) for entry in copied]
        later = [window for window in windows if counter == "exact" or window != "during_walk"]
        typed = entries > 0 and entries + len(later) <= LIMIT and (scope == "all" or episode.order == 0)
        if not (episode.known and episode.moved and typed) or (device_path == "exclude" and collected):
            continue
        if counter == "exact":  # every establishment counts, every zap and restore counts back
            count = len(episode.removed.entries)
        else:  # a copy that came before the count began is not in it; zaps: when they came is not known
            count = entries + len(later) - len(episode.zapped)
            unknown_copies += windows.count("unknown")
            unknown_zaps += bool(episode.zapped)
        stopped = False
        for visit in episode.removed.visits:
            if stopped:
                spared.add(visit.seq)
                spared.update(entry.seq for entry in visit.entries)
                stale += len(visit.entries)
                continue
            count -= len(visit.entries)
            stopped = count <= 0
    left = {"stale_migration_entries": unknown_copies, "walks_that_may_be_full": unknown_zaps}
    return Judgement(spared, stale, left if counter == "posted" else {})

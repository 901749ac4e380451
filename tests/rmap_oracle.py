"""An independent count of rmap visits and migration entries, over the text of `perf script --ns -F +pid,+cpu`.

Written from MODEL C.2, C.4 and D.2 and from the text alone, with nothing of tracekit, so that an agreement means
something. Needs kprobes on try_to_migrate, try_to_migrate_one and remove_migration_pte with folio, vma, addr and mm;
folio_mc_copy and migrate_pages probes are used where present. Run as a script it prints one line per file.
"""

import collections
import lzma
import re
import sys
from pathlib import Path
from typing import NamedTuple

# A comm may hold spaces, '-', ':' and digits, but 15 bytes are too few for all of "1/2 [000] 3.000000000: a:b: ".
LINE = re.compile(r"^\s*.*?\s+-?\d+/(-?\d+)\s+\[\d{3,}\]\s+\d+\.\d{6,9}:\s+(?:\d+\s+)?([\w-]+):(\w+): ?(.*)$")
FIELD = re.compile(r"(\w+)=(?:0x)?([0-9a-fA-F]+)")
TRY, ONE, REMOVE, COPY = "try_to_migrate", "try_to_migrate_one", "remove_migration_pte", "folio_mc_copy"
PROBES = {TRY, ONE, REMOVE, COPY, "remove_migration_ptes", "migrate_pages", "migrate_pages_batch"}
EVENTS = {("migrate", "set_migration_pte"), ("migrate", "remove_migration_pte")}
EVENTS |= {("thp", "set_migration_pmd"), ("thp", "remove_migration_pmd")}
STRUCT_PAGE = 64  # bytes, so that the folio of a page split off is found inside the folio it came from


class Visit(NamedTuple):
    """One call of rmap_one: a VMA, and the entries (addr, order) that it set or restored."""

    vma: int
    addr: int
    mm: int
    entries: list

    @property
    def hit(self):
        return bool(self.entries)


class Walk(NamedTuple):
    """One rmap walk of a folio by a task; visits in the order made.

    `kind` is "try" or "remove". `src` is where the entries were set: the folio itself for a try_to_migrate walk and
    for an undo, None where a remove walk could not be paired. `partner` is the try_to_migrate walk of a remove walk.
    """

    kind: str
    tid: int
    folio: int
    src: int | None
    visits: list
    partner: "Walk | None"

    @property
    def order(self):
        """Order of the folio by its set events, None where none was seen."""
        orders = [order for visit in (self.partner or self).visits for _, order in visit.entries]
        return max(orders, default=None) if self.kind == "try" or self.partner else None

    @property
    def real(self):
        """Whether a remove walk puts a migrated folio in place: not an undo, not a split, not unpaired."""
        return self.kind == "remove" and self.src is not None and self.partner is not None and not self.undo

    @property
    def undo(self):
        return self.kind == "remove" and self.src is not None and within(self.folio, self.src, self.order)


def within(folio, src, order):
    return src <= folio < src + (STRUCT_PAGE << (order or 0))


class Task:
    """What is open in one task: its walk, its visit, and where its folios come from."""

    def __init__(self, tid):
        self.tid = tid
        self.walk = self.visit = None
        self.origin = {}  # folio -> source folio: itself since try_to_migrate, another since folio_mc_copy
        self.tries = {}  # source folio -> its latest try_to_migrate walk
        self.copies = False  # folio_mc_copy is probed

    def probe(self, name, fields):
        """Take a probe; return the walk that it opens, if it does."""
        folio = fields.get("folio")
        opened = None
        self.visit = None
        if name == COPY:
            self.copies = True
            self.origin[fields["dst"]] = fields["src"]
        if name not in (ONE, REMOVE):
            self.walk = opened = self.open_try(folio) if name == TRY else None
            return opened
        self.visit = Visit(fields["vma"], fields["addr"], fields["mm"], [])
        kind = "try" if name == ONE else "remove"
        if self.walk is None or (self.walk.kind, self.walk.folio) != (kind, folio) or self.repeats(fields["vma"]):
            opened = self.walk = self.open_try(folio) if name == ONE else self.open_remove(folio)
        self.walk.visits.append(self.visit)
        return opened

    def repeats(self, vma):
        return self.walk.kind == "remove" and any(visit.vma == vma for visit in self.walk.visits)

    def open_try(self, folio):
        self.origin[folio] = folio
        self.tries.pop(folio, None)  # the order of this dict is that of the latest tries
        self.tries[folio] = Walk("try", self.tid, folio, folio, [], None)
        return self.tries[folio]

    def open_remove(self, folio):
        src = self.origin.pop(folio, None)
        if src is None:  # a page split off its folio
            src = next((f for f, walk in self.tries.items() if within(folio, f, walk.order)), None)
        if src is None and not self.copies:
            src = self.first_tried()
            self.origin.pop(src, None)
        walk = Walk("remove", self.tid, folio, src, [], self.tries.get(src))
        if walk.real:  # the source is free now; after an undo or a split it is not
            del self.tries[src]
        return walk

    def first_tried(self):
        """Pair without a probe on the copy: folios come back in the order tried, at their addresses (MODEL C.4)."""
        place = (self.visit.mm, self.visit.addr)
        for folio in self.tries:
            visited = {(visit.mm, visit.addr) for visit in self.tries[folio].visits}
            if folio in self.origin and self.tries[folio].order is not None and place in visited:
                return folio
        return None

    def event(self, name, fields):
        """Take a migration entry's tracepoint; return whether a visit explains it."""
        kind = "try" if name.startswith("set") else "remove"
        if self.visit is None or self.walk.kind != kind:
            return False
        self.visit.entries.append((fields["addr"], fields.get("order", 9)))  # PMD events print no order
        return True


def read_lines(path):
    """Read the lines of a text file, or of one compressed by xz."""
    with (lzma.open if str(path).endswith(".xz") else open)(path, "rt", errors="replace") as lines:
        yield from lines


def read_walks(lines):
    """Return the walks in the order they began, and the number of entry events that no visit explains."""
    tasks, walks, strays = {}, [], 0
    for line in lines:
        if not (match := LINE.match(line)):
            continue
        tid, system, name, text = match.groups()
        if not (traced := (system, name) in EVENTS) and (name not in PROBES or system == "migrate"):
            continue
        task = tasks.setdefault(tid, Task(int(tid)))
        fields = {key: int(value, 10 if key == "order" else 16) for key, value in FIELD.findall(text)}
        if traced:
            strays += not task.event(name, fields)
        elif walk := task.probe(name, fields):
            walks.append(walk)
    return walks, strays


def counter_early_exit_visits(walks):
    """Return the visits that counter_early_exit:counter=exact,scope=small leaves of each remove walk (MODEL D.2).

    A small folio that really migrated is left after the last VMA that held an entry; when all entries were zapped,
    after the first one, because the walk asks after a visit and not before. Any other walk goes on to its end.
    """
    left = []
    for walk in walks:
        if walk.kind != "remove":
            continue
        last = max((i for i, visit in enumerate(walk.visits, 1) if visit.hit), default=1)
        left.append(last if walk.real and walk.order == 0 else len(walk.visits))
    return left


def count_entries(walks):
    """Count entries set, restored, copied (restored where none was set) and zapped (set and never restored)."""
    counts = collections.Counter(set=0, restored=0, copied=0, zapped=0)
    there = set()
    for walk in walks:
        for visit in walk.visits:
            for addr, _ in visit.entries:
                key = (walk.src, visit.mm, addr)
                if walk.kind == "try":
                    counts["set"] += 1
                    counts["zapped"] += key in there
                    there.add(key)
                else:
                    counts["restored"] += 1
                    counts["copied"] += key not in there
                    there.discard(key)
    counts["zapped"] += len(there)
    return dict(counts)


def summarize(path):
    """Return the counts of one file by name."""
    walks, strays = read_walks(read_lines(path))
    tries = [walk for walk in walks if walk.kind == "try"]
    removes = [walk for walk in walks if walk.kind == "remove"]
    return {
        "try_walks": len(tries),
        "try_visits": sum(len(walk.visits) for walk in tries),
        "remove_walks": len(removes),
        "real": sum(walk.real for walk in removes),
        "undo": sum(walk.undo for walk in removes),
        "unpaired": sum(walk.src is None or walk.partner is None for walk in removes),
        "remove_visits": sum(len(walk.visits) for walk in removes),
        "hits": sum(visit.hit for walk in removes for visit in walk.visits),
        "policy_visits": sum(counter_early_exit_visits(walks)),
        **count_entries(walks),
        "strays": strays,
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(Path(argument), *(f"{name}={value}" for name, value in summarize(argument).items()))

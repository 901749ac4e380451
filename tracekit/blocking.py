"""Copies made in batches: what they take together, and how long each folio stays blocked (MODEL.md D.2, seed 1).

Who faults on a migration entry waits until its folio is moved. Per folio, from the records of the trace itself:

    u  until its entries are set, since those of the folio before it were
    m  metadata: since the folio before it was restored (the first of a batch: since the last entry was set, so with the
       flush of the TLB) until its copy begins, and from the end of the copy to its rmap walk
    c  the copy
    r  the rmap walk that restores its entries

    as traced      each folio waits for the u of those after it in its batch, and for m + c + r up to its own
    after_metadata … for the same u, all m, the setup, all c / S, then r up to its own
    before_move    … for the same u, the setup, all c / S, then m + r up to its own

A time is held as the sum it is, nanoseconds less records times what taking one costs, so that one pass over the folios
serves all draws of the prices.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.costs.model import DRAWS, Floats, Prices, fixed, generator, uncertain
from tracekit.machine.replay import Replay
from tracekit.machine.timeline import Kind, Source
from tracekit.policies import Batches

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Where no return probe shows the end of a copy: its share of the time until the rmap walk. Large folios: all of it; the
# least seen, 512 counted steps of 2449, was in copy-4k of the shared measurements.
COPY_SHARE = (0.2, 0.8, 1.0)
# Of a probe's overhead: a folio's place in a batch; its deviation (copy-4k, copy-64k: 98 and 100 ns of 1085)
PLACE_SHARE = (0.09, 0.03)
# What the price of a batch covers
OWN = ("folio.copy", "folio.copy_batch", "folio.copy_batched", "folio.move_attempt")
EVENTS = ("folio_copy", "set_migration_pte", "try_to_migrate_one", "remove_migration_pte_visit")

_SOURCES = (Source.TRACEPOINT, Source.KPROBE, Source.KRETPROBE)
_WALK = (Kind.REMOVE, Kind.REMOVE_VISIT, Kind.RESTORE)
_RETURNS = ("folio_mc_copy_ret", "folio_copy_ret", "folio_mc_copy__return", "folio_copy__return")
_MOST_UNSEEN = 0.1  # share of the copies whose end may be unseen; they are taken to be like the others


class Blocking(NamedTuple):
    """Of the folios whose way was seen; float64[2, DRAWS]: as traced and under the policy, ns.

    Attributes:
        folios: how many.
        batches: as traced and under the policy.
        total_ns: all batches together.
        first_ns: the wait of a batch's first folio, mean over the batches.
        sum_ns: all waits.
        worst_ns: the longest wait.
    """

    folios: int
    batches: tuple[int, int]
    total_ns: Floats
    first_ns: Floats
    sum_ns: Floats
    worst_ns: Floats


def as_json(found: Blocking | str) -> dict[str, Any]:
    """``found`` as summary.json holds it."""
    if isinstance(found, str):
        return {"reason": found}

    def ends(draws: Floats) -> dict[str, float]:
        low, high = np.percentile(draws, (5, 95))
        best = float(draws[0])
        return {"low": round(min(float(low), best)), "median": round(best), "high": round(max(float(high), best))}

    times = {name: getattr(found, name) for name in ("total_ns", "first_ns", "sum_ns", "worst_ns")}
    return {
        "reason": None,
        "folios": found.folios,
        "batches": dict(zip(("traced", "policy"), found.batches, strict=True)),
        **{name: {"traced": ends(pair[0]), "policy": ends(pair[1])} for name, pair in times.items()},
    }


class _Times(NamedTuple):
    """Of every copy, in the order of the operations table; float64[4, n]: ns as traced, records by ``_SOURCES``."""

    call: Ints
    whole: Bools  # all of it seen, and of all others of its run
    first: Bools  # of a batch
    u: Floats
    m: Floats
    c: Floats
    r: Floats
    ends_seen: bool  # of the copies


class _Sums(NamedTuple):
    """A time that is a sum over folios: float64[4] each, ``sped`` float64[3, 4] for S low, best and high."""

    plain: Floats
    copied: Floats  # part of it is copying and would be sped up, the rest not
    sped: Floats
    setups: float
    places: float


class _Worlds(NamedTuple):
    """float64[DRAWS] each; ``weights`` float64[4, DRAWS]: they turn a time as traced into the time untraced."""

    weights: Floats
    share: Floats
    speed: Floats  # -1 low, 0 best, 1 high
    setup_ns: Floats
    place_ns: Floats

    def of(self, sums: _Sums) -> Floats:
        """float64[DRAWS]: ``sums`` in each world, ns."""
        low, best, high = sums.sped @ self.weights
        sped = best + np.abs(self.speed) * (np.where(self.speed < 0, low, high) - best)
        rest = (1 - self.share) * (sums.copied @ self.weights)
        own = sums.setups * self.setup_ns + sums.places * self.place_ns
        return np.asarray(np.maximum(sums.plain @ self.weights + rest + self.share * sped + own, 0))


def saving(replay: Replay, batches: Batches, prices: Prices, calls: pl.DataFrame) -> Floats | str:
    """float64[DRAWS]: time, ns, that the batches save in ``calls`` (column call); or why that cannot be said."""
    times, batch, speedup = _all(replay, batches)
    inside = (batch >= 0) & np.isin(times.call, calls["call"].to_numpy())
    if not inside.any():
        return np.zeros(DRAWS)
    c = times.c[:, inside]
    seen = np.isfinite(c[0])
    if seen.mean() < 1 - _MOST_UNSEEN:
        return "no rmap walk was seen after many of the copies: not mapped, or needs remove_migration_pte"
    c[:, ~seen] = c[:, seen].mean(axis=1, keepdims=True)
    worlds = _worlds(replay, times, batches, prices)
    zero, own = np.zeros(4), np.zeros((3, 4))
    n_batches = len(np.unique(batch[inside]))
    before = worlds.of(_Sums(c.sum(axis=1), zero, own, 0, 0))
    sped = (c / speedup[:, None, inside]).sum(axis=2)
    after = worlds.of(_Sums(zero, c.sum(axis=1), sped, n_batches, int(inside.sum())))
    more = n_batches - int((times.first & inside).sum())
    saved: Floats = before - after - more * np.maximum(_opening(times) @ worlds.weights, 0)
    return saved


def blocking(replay: Replay, batches: Batches, prices: Prices) -> Blocking | str:
    """How long folios stay blocked, as traced and under the policy; or why that cannot be said."""
    times, batch, speedup = _all(replay, batches)
    timed = times.whole & (batch >= 0)
    if not timed.any():
        return f"no call in which the whole way of each folio was seen, by {', '.join(EVENTS)}"
    worlds = _worlds(replay, times, batches, prices)
    u, m, c, r = (part[:, timed] for part in (times.u, times.m, times.c, times.r))
    was, now = np.cumsum(times.first[timed]) - 1, _dense(batch[timed])
    none, no_speed = np.zeros_like(c), np.zeros((3, *c.shape))
    no_own = np.zeros(len(was))
    traced = _waits(worlds, was, (_after(was, u) + _until(was, m + c + r), none, no_speed, no_own, no_own))
    opened = (_starts(now).astype(np.int64) - _starts(was))[None] * _opening(times, worlds)[:, None]
    m = m + opened
    sped = c / speedup[:, None, timed]
    folios = np.bincount(now)[now].astype(np.float64)
    whole = [_per_batch(now, part) for part in (m, c, *sped)]
    if batches.before_move:
        plain, left = _until(now, m + r), _until(now, c)
    else:
        plain, left = whole[0] + _until(now, r), whole[1]
    policy = _waits(worlds, now, (_after(now, u) + plain, left, np.stack(whole[2:]), np.ones(len(now)), folios))
    before = worlds.of(_Sums((u + m - opened + c + r).sum(axis=1), np.zeros(4), np.zeros((3, 4)), 0, 0))
    sums = _Sums((u + m + r).sum(axis=1), c.sum(axis=1), sped.sum(axis=2), int(now[-1]) + 1, len(now))
    pairs = [np.stack([before, worlds.of(sums)]), *(np.stack(pair) for pair in zip(traced, policy, strict=True))]
    return Blocking(len(now), (int(was[-1]) + 1, int(now[-1]) + 1), *pairs)


def _waits(
    worlds: _Worlds, batch: Ints, parts: tuple[Floats, Floats, Floats, Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """First (mean over the batches), sum and worst of waits; ``parts``: as ``_Sums`` of each folio, folios last."""

    def over(weight: Floats) -> Floats:
        plain, copied, sped, setups, places = (part @ weight for part in parts)
        return worlds.of(_Sums(plain, copied, sped, float(setups), float(places)))

    firsts = _starts(batch).astype(np.float64)
    plain, copied, sped, setups, places = parts
    best = worlds.weights[:, 0] @ (plain + (1 - worlds.share[0]) * copied + worlds.share[0] * sped[1])
    best = best + setups * worlds.setup_ns[0] + places * worlds.place_ns[0]
    longest = (np.arange(len(batch)) == int(np.argmax(best))).astype(np.float64)
    return over(firsts / firsts.sum()), over(np.ones(len(batch))), over(longest)


def _worlds(replay: Replay, times: _Times, batches: Batches, prices: Prices) -> _Worlds:
    weights = np.stack([fixed(1.0), *(-prices.overhead_ns[source] for source in _SOURCES)])
    least, usual, most = COPY_SHARE
    share = generator("copy share").uniform(least, most, DRAWS)
    share[0] = usual
    speed = np.clip(uncertain("speed-up", 0.0, 1 / 1.645), -1, 1)
    share = fixed(1.0) if times.ends_seen else share
    if batches.setup_ns is not None:
        setup = fixed(batches.setup_ns)
    else:
        low, best, high = batches.setup_copies
        size = replay.operations.filter(pl.col("op") == "folio.copy")["bytes"].fill_null(0).to_numpy()
        known = np.isfinite(times.c[0]) & (size > 0)
        two_mib = share * (times.c[:, known].sum(axis=1) @ weights) * 2**21 / max(int(size[known].sum()), 1)
        position = np.clip(uncertain("setup", 0.0, 1 / 1.645), -1, 1)
        copies = best + np.abs(position) * (np.where(position < 0, low, high) - best)
        setup = np.maximum(copies * two_mib, 0)
    place = np.maximum(uncertain("place", *PLACE_SHARE), 0) * prices.overhead_ns[Source.KPROBE] * (not batches.is_free)
    return _Worlds(weights, share, speed, setup, place)


def _opening(times: _Times, worlds: _Worlds | None = None) -> Floats:
    """float64[4]: what the first folio of a batch takes longer than another until its copy: the flush of the TLB.

    With ``worlds``: nothing, where that is less than nothing.
    """
    first, other = (times.whole & times.first), (times.whole & ~times.first)
    if not first.any() or not other.any():
        return np.zeros(4)
    longer: Floats = times.m[:, first].mean(axis=1) - times.m[:, other].mean(axis=1)
    return np.zeros(4) if worlds is not None and longer @ worlds.weights[:, 0] < 0 else longer


class _Same:
    """A replay and what belongs to it, as a key: the same only if it is the very same."""

    def __init__(self, replay: Replay, batches: Batches) -> None:
        self.replay, self.traced = replay, batches.traced

    def __hash__(self) -> int:
        return id(self.replay.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.replay.rows is other.replay.rows


def _all(replay: Replay, batches: Batches) -> tuple[_Times, Ints, Floats]:
    """Of every copy: its times, its batch under the policy (-1: none), and float64[3, n], its speed-up."""
    return _measure(_Same(replay, batches)), batches.batch, batches.speedup


@lru_cache(maxsize=1)
def _measure(same: _Same) -> _Times:
    replay = same.replay
    rows, walks = replay.rows, replay.walks
    kind, task, source = (rows[name].to_numpy() for name in ("kind", "task", "source"))
    at = np.flatnonzero(kind == Kind.COPY)
    batch = same.traced
    clock = np.stack([rows["time_ns"].to_numpy(), *(np.cumsum(source == s) - (source == s) for s in _SOURCES)])

    def between(start: Ints, end: Ints, good: Bools) -> Floats:
        """float64[4, n]; NaN where a row is none."""
        gap: Floats = (clock[:, np.where(good, end, 0)] - clock[:, np.where(good, start, 0)]).astype(np.float64)
        gap[:, ~good] = np.nan
        return gap

    walk_row = _next(np.flatnonzero(np.isin(kind, _WALK)), at)
    follows = _next(at, at + 1)  # the next copy; a walk after it is of that one
    seen = (walk_row < follows) & (walk_row < len(rows))
    seen[seen] = task[walk_row[seen]] == task[at[seen]]
    walk = np.where(seen, walks.walk_of_row[np.where(seen, walk_row, 0)], -1)
    end, set_row, try_row = _ways(replay, walk)
    done = _copy_ends(rows, at, np.where(seen, walk_row, at))
    ends_seen = bool(len(at)) and bool((done > at)[seen].all())
    copy_end = done if ends_seen else walk_row
    first = np.diff(batch, prepend=-1) != 0
    whole = seen & (walk >= 0) & (set_row >= 0) & (set_row < at) & (end >= walk_row)
    last_set = _last_of(first)
    before_set = np.where(first, try_row, np.roll(set_row, 1))
    before_copy = np.where(first, set_row[last_set], np.roll(end, 1))
    whole &= (before_set >= 0) & (before_set <= set_row) & (before_copy >= 0) & (before_copy <= at)
    run = np.cumsum(np.diff(task[at], prepend=-1) != 0) * (len(replay.calls) + 1)
    call = replay.operations.filter(pl.col("op") == "folio.copy")["call"].fill_null(-1).to_numpy()
    whole = _everywhere(run + call, whole)
    m = between(before_copy, at, whole) + (between(copy_end, walk_row, whole) if ends_seen else 0)
    return _Times(
        call,
        whole,
        first,
        between(before_set, set_row, whole),
        m,
        between(at, copy_end, seen),
        between(walk_row, end, whole),
        ends_seen,
    )


def _ways(replay: Replay, walk: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows of the end of each remove walk ``walk``, and of the last and first event of its try walk; -1: none."""
    n = len(replay.walks.table) + 1
    end, last, first = np.full((3, n), -1, dtype=np.int64)  # walk -1 is the place at the end
    table = replay.walks.table
    end[table["walk"].to_numpy()] = table["last_row"].to_numpy()
    known = replay.episodes.drop_nulls(["remove_walk", "try_walk"]).filter("known")
    last[known["remove_walk"].to_numpy()] = known["try_last_row"].to_numpy()
    first[known["remove_walk"].to_numpy()] = known["try_first_row"].to_numpy()
    return end[walk], last[walk], first[walk]


def _copy_ends(rows: pl.DataFrame, at: Ints, until: Ints) -> Ints:
    """Row of the return from each copy, where one was probed between it and ``until``; else the copy's own."""
    name = rows["event"].cast(pl.String).str.split(":").list.last()
    returns = np.flatnonzero(name.is_in(_RETURNS).to_numpy()) if len(rows) else at
    found = _next(returns, at)
    return np.where(found < until, found, at)


def _next(places: Ints, at: Ints) -> Ints:
    """int64[n]: the first of ``places`` that is not before ``at``; a number beyond all rows where there is none."""
    beyond = np.append(places, np.iinfo(np.int64).max)
    return beyond[np.searchsorted(places, at)]


def _everywhere(group: Ints, good: Bools) -> Bools:
    """bool[n]: whether all of the same group are good."""
    _, where = np.unique(group, return_inverse=True)
    bad = np.bincount(where, weights=~good) if len(where) else np.zeros(0)
    return np.asarray(bad[where] == 0)


def _last_of(first: Bools) -> Ints:
    """int64[n]: place of the last one of the same batch."""
    lasts = np.flatnonzero(np.append(first[1:], True)) if len(first) else np.zeros(0, dtype=np.int64)
    return lasts[np.cumsum(first) - 1] if len(first) else lasts


def _starts(batch: Ints) -> Bools:
    return np.asarray(np.diff(batch, prepend=-1) != 0)


def _dense(batch: Ints) -> Ints:
    return np.cumsum(_starts(batch)) - 1


def _until(batch: Ints, part: Floats) -> Floats:
    """float64[4, n]: sums over each batch, up to and with each folio."""
    total = np.cumsum(part, axis=1)
    start = np.flatnonzero(_starts(batch))
    return total - (total[:, start] - part[:, start])[:, batch]


def _per_batch(batch: Ints, part: Floats) -> Floats:
    """float64[4, n]: the sum over each folio's batch."""
    return np.add.reduceat(part, np.flatnonzero(_starts(batch)), axis=1)[:, batch]


def _after(batch: Ints, part: Floats) -> Floats:
    """float64[4, n]: sums over those of the batch that come after each folio."""
    return _per_batch(batch, part) - _until(batch, part)

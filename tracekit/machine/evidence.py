"""What the traced kernel already has of the policies: by what the trace shows, else by its release."""

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from tracekit.machine.pte import version_of

# The first releases with each variant, as far as MODEL.md A.3 and A.5 know them; mainline, distributions backport
RELEASES: dict[str, tuple[tuple[tuple[int, int], str], ...]] = {
    "batched_zap": (((0, 0), "none"), ((6, 9), "upstream")),
    "batched_unmap": (((0, 0), "page"), ((6, 15), "whole"), ((6, 16), "partial")),
    "batched_migrate_unmap": (((0, 0), "none"),),
    "single_trylock": (((0, 0), "retry2"), ((5, 16), "noretry")),
    "counter_early_exit": (((0, 0), "none"),),
    "batched_copy": (((0, 0), "none"),),
}
_BATCHES = {"zap": "batched_zap", "try_to_unmap": "batched_unmap", "try_to_migrate": "batched_migrate_unmap"}
_PHASES = {policy: phase for phase, policy in _BATCHES.items()}
_NEVER = {"batched_zap": "none", "batched_unmap": "page", "batched_migrate_unmap": "none"}


class Has(NamedTuple):
    """What the kernel has of one policy.

    Attributes:
        variant: as ``RELEASES`` names it; None: not known.
        source: trace, release, given (by the user) or unknown.
        why: one sentence.
    """

    variant: str | None
    source: str
    why: str


def find_evidence(ops: pl.DataFrame, release: str | None, given: Mapping[str, str] | None = None) -> dict[str, Has]:
    """What the kernel has of each policy; a trace shows it of those that batch rmap removals.

    Args:
        ops: the operations; rmap.remove with phase, run, nr_pages, lazyfree, anon, life.
        release: ``uname -r`` of the traced kernel; None: not known.
        given: policy → variant, which is then not asked for.
    """
    removes = ops.filter((pl.col("op") == "rmap.remove") & pl.col("run").is_not_null() & pl.col("life").is_not_null())
    found = {}
    for policy in RELEASES:
        told = (given or {}).get(policy)
        if told:
            found[policy] = Has(told, "given", "as asked for")
            continue
        found[policy] = released = _released(policy, release)
        if policy in _PHASES:
            of_phase = removes.filter(pl.col("phase") == _PHASES[policy])
            found[policy] = _seen(policy, of_phase, released) or released
    return found


def batched(has: Mapping[str, Has]) -> pl.Expr:
    """Whether the kernel takes out a run at once, by ``phase``; null: not known."""
    known = {phase: has[policy].variant != _NEVER[policy] for phase, policy in _BATCHES.items() if has[policy].variant}
    return pl.col("phase").cast(pl.String).replace_strict(known, default=None, return_dtype=pl.Boolean)


def _seen(policy: str, removes: pl.DataFrame, released: Has) -> Has | None:
    """What the removals of the policy's own phase prove; None: nothing."""
    many = removes.filter(pl.col("nr_pages") > 1)
    if len(many):
        why = f"{len(many)} calls of folio_remove_rmap_ptes with nr_pages > 1 in {_PHASES[policy]}"
        return Has(_batching(policy, many, released), "trace", why)
    runs = removes
    if policy == "batched_unmap":  # swap-backed pages go one by one in every kernel
        runs = runs.filter(pl.col("lazyfree") | ~pl.col("anon"))
    long = runs.group_by("run").len().filter(pl.col("len") > 1)
    if len(long):
        return Has(_NEVER[policy], "trace", f"{len(long)} runs of a large folio taken out page by page")
    return None


def _batching(policy: str, many: pl.DataFrame, released: Has) -> str:
    """Which way of batching it is, of those that differ in what they batch."""
    if policy != "batched_unmap":
        return {"batched_zap": "upstream", "batched_migrate_unmap": "all"}[policy]
    part = many.filter(pl.col("left") | (pl.col("page") != pl.col("folio")))
    return "whole" if part.is_empty() and released.variant == "whole" else "partial"


def _released(policy: str, release: str | None) -> Has:
    own = version_of(release)
    if own is None:
        return Has(None, "unknown", "neither the trace nor the release tells")
    variant = [variant for first, variant in RELEASES[policy] if first <= own][-1]
    return Has(variant, "release", f"the trace does not tell; release {release}")

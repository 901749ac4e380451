"""Policies together: what each spares of its own operations, and what each adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tracekit.errors import UsageError
from tracekit.policies import Ints, Judgement, Policy


@dataclass(frozen=True)
class Combination:
    """Policies that touch no operation in common; parameters are those of the parts."""

    parts: tuple[Policy, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """What any of them needs."""
        return tuple(dict.fromkeys(event for part in self.parts for event in part.needs))

    @property
    def touches(self) -> tuple[str, ...]:
        """What any of them touches."""
        return tuple(op for part in self.parts for op in _touches(part))

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """An operation that any part spares is spared; what the parts add and harm is summed."""
        judged = [part.judge(ops) for part in self.parts]
        executed = np.ones(len(ops), dtype=np.int64)
        added: dict[str, Ints] = {}
        amounts: dict[str, Ints] = {}
        harmed = np.zeros(len(ops), dtype=bool)
        for one in judged:
            executed *= one.executed
            for name, count in one.added.items():
                added[name] = added.get(name, 0) + count
            for name, count in one.amounts.items():
                amounts[name] = amounts.get(name, 0) + count
            if one.harmed is not None:
                harmed |= one.harmed
        return Judgement(
            executed,
            added,
            harmed if harmed.any() else None,
            _sum([one.unsafe for one in judged]),
            _sum([one.losses for one in judged]),
            _sum([one.open for one in judged]),
            next((one.batches for one in judged if one.batches is not None), None),
            amounts,
            pl.concat(proofs) if (proofs := [one.proof for one in judged if one.proof is not None]) else None,
        )


def combine(parts: Sequence[tuple[str, Policy]]) -> Combination:
    """The policies ``parts`` (name, policy) as one.

    Raises:
        UsageError: two touch the same operation, so that the effect of both is not that of each.
    """
    whose: dict[str, str] = {}
    for name, policy in parts:
        if not _touches(policy):
            raise UsageError(f"{name} cannot be combined: it does not say what it touches, or touches nothing")
        for op in _touches(policy):
            if op in whose:
                raise UsageError(f"{whose[op]} and {name} cannot be combined: both change {op}")
            whose[op] = name
    return Combination(tuple(policy for _, policy in parts))


def _touches(policy: Policy) -> tuple[str, ...]:
    touches: tuple[str, ...] = getattr(policy, "touches", ())
    return touches


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one.get(name, 0) for one in counts) for name in dict.fromkeys(n for one in counts for n in one)}

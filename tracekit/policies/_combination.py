"""Policies together: what each spares of its own operations, and what each adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np
import polars as pl

from tracekit.errors import UsageError
from tracekit.policies import Ints, Judgement, Policy

Count = TypeVar("Count", int, Ints)


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
        harmed = [one.harmed for one in judged if one.harmed is not None and one.harmed.any()]
        return Judgement(
            reduce(np.multiply, [one.executed for one in judged]),
            _sum([one.added for one in judged]),
            reduce(np.logical_or, harmed) if harmed else None,
            _sum([one.unsafe for one in judged]),
            _sum([one.losses for one in judged]),
            _sum([one.open for one in judged]),
            next((one.batches for one in judged if one.batches is not None), None),
            _sum([one.amounts for one in judged]),
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


def _sum(counts: list[dict[str, Count]]) -> dict[str, Count]:
    """By name. What only one part has is not copied: it may be long."""
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: reduce(add, [one[name] for one in counts if name in one]) for name in names}

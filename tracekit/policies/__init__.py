"""Policies: which of the operations that the kernel performed would have been performed another way.

A policy is a module here, or a file of the user's, with a frozen dataclass ``POLICY``; its fields are the parameters
on the command line (``--policy counter_early_exit:counter=posted,scope=all``; their types are in ``_parameters``, the
grammar in ``_spec``). It sees the operations table and nothing else: no time, no machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Batches(NamedTuple):
    """Folios whose contents are copied together; times follow from the trace's own (``blocking``).

    Arrays have a place for each folio.copy of the table, in its order.

    Attributes:
        batch: int64[n_copies], number of its batch; -1: copied alone, as traced.
        traced: int64[n_copies], of the batch in which the traced kernel moved it.
        speedup: float64[3, n_copies], low, best and high: time of a copy by one CPU / its share of the batch's copy.
        setup_ns: of one batch, the trace's clock; None: ``setup_copies``.
        setup_copies: low, best and high: setup of one batch / time in which one CPU copies 2 MiB.
        before_move: contents are copied before any metadata is moved, else after all of it.
        is_free: a folio's place in its batch costs nothing: of a bound.
    """

    batch: Ints
    traced: Ints
    speedup: Floats
    setup_ns: float | None
    setup_copies: tuple[float, float, float]
    before_move: bool
    is_free: bool = False


@dataclass(frozen=True)
class Judgement:
    """What a policy makes of an operations table of n_ops rows.

    Attributes:
        executed: int64[n_ops], how often each traced operation is still performed: 1 stays, 0 is spared.
        added: operation name → int64[n_ops], operations of the policy's own, at the row that brings them about.
        harmed: bool[n_ops], rows of episodes in which the policy does harm: nothing spared there is a saving.
        unsafe: outcomes that would be bugs in the kernel, by name.
        losses: what the kernel would no longer achieve, by name.
        open: what the trace leaves open, by name: an interval, not a number.
        batches: copies that are made together; None: the policy leaves them alone.
        amounts: name of ``operations.AMOUNTS`` → int64[n_ops], how much more of it than traced; negative: less.
        proof: what shows the unsafe outcomes, one row each, for a reader to look up in the trace; None: none. Columns
            outcome (a name of ``unsafe``), time_ns, task, addr, vma, mm, folio, episode, seq (of the event), made_by
            and made_ns (what made it so, and when; null: not known).
    """

    executed: Ints
    added: dict[str, Ints] = field(default_factory=dict)
    harmed: npt.NDArray[np.bool_] | None = None
    unsafe: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    batches: Batches | None = None
    amounts: dict[str, Ints] = field(default_factory=dict)
    proof: pl.DataFrame | None = None


class Policy(Protocol):
    """A frozen dataclass; its docstring's first line is what ``tracekit policies`` says about it.

    Attributes:
        needs: canonical events (``schemas/events``) that it cannot be judged without; () for none.

    It may have ``touches``: operations (``tracekit policies --operations``) that it may spare or merge. Two policies
    that say so and touch none in common can be combined, ``a+b``. One whose mechanism some kernels have has
    ``variant``, a property: the name by which ``--kernel-has`` knows what it is set to. To have what the kernel has
    changes nothing. With ``undoes = False`` it cannot be judged where the kernel has another variant.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...  # noqa: D102 -- see above

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Judge the operations ``ops`` (columns: ``machine.operations.SCHEMA``)."""
        ...


class Chosen(NamedTuple):
    """One policy, set.

    Attributes:
        spec: as on the command line, a sweep's with the one value.
        name: of the policy or of its file; of a combination, the names with plus signs.
        params: by name, defaults included; of a combination, with the name of the policy before it.
    """

    spec: str
    name: str
    policy: Policy
    params: dict[str, str | int | float | bool | None]


def unchanged(n_ops: int) -> Judgement:
    """Everything as traced."""
    return Judgement(np.ones(n_ops, dtype=np.int64))


# The parts of this package need what stands above, so they are imported where they are used.


def expand(spec: str) -> list[Chosen]:
    """The policies that ``spec`` of the command line names: several for a sweep, one for a combination.

    Raises:
        UsageError: no such policy, parameter or value, or no such combination; says which there are, or why.
    """
    from tracekit.policies import _spec  # noqa: PLC0415

    return _spec.parse(spec)


def parse(spec: str) -> tuple[str, Policy]:
    """The name and the policy of a ``spec`` that names one; see ``expand``."""
    only, *_ = expand(spec)
    return only.name, only.policy


def params(policy: Policy) -> dict[str, Any]:
    """The parameters of ``policy``, defaults included."""
    from tracekit.policies import _parameters  # noqa: PLC0415

    return dict(_parameters.values(policy))


def describe(name: str) -> dict[str, Any]:
    """Name, first line of text, needed events and parameters of one policy."""
    from tracekit.policies import _spec  # noqa: PLC0415

    return _spec.describe(name)


def judge(name: str, policy: Policy, ops: pl.DataFrame) -> Judgement:
    """The judgement of ``policy`` on ``ops``.

    Raises:
        UsageError: a policy of the user's own fails; names file and line.
    """
    from tracekit.policies import _file  # noqa: PLC0415

    return _file.judge(name, policy, ops)


def read_variants(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=VARIANT`` … of ``--kernel-has`` → policy → variant.

    Raises:
        UsageError: one of another form, or one policy twice.
    """
    from tracekit.policies import _variants  # noqa: PLC0415

    return _variants.read(texts)


def check_variants(has: Mapping[str, str]) -> None:
    """Refuse what no kernel can have.

    Raises:
        UsageError: no such policy, or none of its variants; says which there are.
    """
    from tracekit.policies import _variants  # noqa: PLC0415

    _variants.check(has)


def template() -> str:
    """A policy of one's own to begin with."""
    from inspect import getsource  # noqa: PLC0415

    from tracekit.policies import _template  # noqa: PLC0415

    return getsource(_template)

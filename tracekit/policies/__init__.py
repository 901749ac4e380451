"""Policies: which of the operations that the kernel performed would have been performed another way.

A policy is a module here with a frozen dataclass ``POLICY``; its fields are the parameters on the command line
(``--policy counter_early_exit:counter=posted,scope=all``). It sees the operations table and nothing else: no time,
no machine.
"""

from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit import registry
from tracekit.errors import UsageError

Ints = npt.NDArray[np.int64]


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
    """

    executed: Ints
    added: dict[str, Ints] = field(default_factory=dict)
    harmed: npt.NDArray[np.bool_] | None = None
    unsafe: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)


class Policy(Protocol):
    """A frozen dataclass; see the module's text."""

    needs: ClassVar[tuple[str, ...]]  # canonical events that it cannot be judged without

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Judge the operations ``ops`` (columns: ``machine.operations.SCHEMA``)."""
        ...


def describe(name: str) -> dict[str, Any]:
    """Name, first line of text, needed events and parameters (choices, default) of one policy."""
    kind = registry.load(__name__, name).POLICY
    hints = get_type_hints(kind)
    return {
        "name": name,
        "text": (kind.__doc__ or "").strip().splitlines()[0],
        "needs": list(kind.needs),
        "params": {f.name: {"choices": _choices(hints[f.name]), "default": _default(f)} for f in fields(kind)},
    }


def parse(spec: str) -> tuple[str, Policy]:
    """``name[:key=value,…]`` → the name and the policy.

    Raises:
        UsageError: no such policy, parameter or value; says which there are.
    """
    name, _, text = spec.partition(":")
    kind = registry.load(__name__, name).POLICY
    hints = {key: hint for key, hint in get_type_hints(kind).items() if get_origin(hint) is not ClassVar}
    given: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if key not in hints or not equals:
            raise UsageError(f"{spec}: {pair!r} is not a parameter of {name}: {_usage(name, hints)}")
        if value not in _choices(hints[key]):
            raise UsageError(f"{spec}: {key} is one of {', '.join(_choices(hints[key]))}, not {value!r}")
        given[key] = value
    return name, kind(**given)


def params(policy: Policy) -> dict[str, str]:
    """The parameters of ``policy``, defaults included."""
    return asdict(policy)  # type: ignore[call-overload,no-any-return]


def _choices(hint: object) -> list[str]:
    return list(get_args(hint)) if get_origin(hint) is Literal else []


def _default(parameter: Field[Any]) -> str | None:
    return None if parameter.default is MISSING else parameter.default


def _usage(name: str, hints: dict[str, object]) -> str:
    return "; ".join(f"{key}={'|'.join(_choices(hint))}" for key, hint in hints.items()) or f"{name} takes none"

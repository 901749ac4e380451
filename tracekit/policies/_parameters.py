"""Parameters of policies: the fields of their dataclasses, of type Literal, bool, int, float or str.

A number may have a range (``Annotated[int, Range(1, 64)]``), and any but a Literal the default None: decided by the
policy.
"""

from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tracekit.errors import UsageError
from tracekit.policies import Policy

Value = str | int | float | bool | None
_BOOLS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


class Range(NamedTuple):
    """Least and greatest value of a number, both allowed."""

    least: float
    most: float = float("inf")


class Parameter(NamedTuple):
    """One parameter.

    Attributes:
        kind: str for a Literal, too.
        choices: of a Literal, and of a bool; else empty.
        limits: of a number.
        default: None: decided by the policy.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    limits: Range | None
    default: Value

    @property
    def usage(self) -> str:
        """``threads=1…64``."""
        if self.choices:
            return f"{self.name}={'|'.join(self.choices)}"
        if self.limits is None:
            return f"{self.name}={self.kind.__name__.upper()}"
        most = "" if self.limits.most == float("inf") else f"{self.limits.most:g}"
        return f"{self.name}={self.limits.least:g}…{most}"

    def read(self, text: str) -> Value:
        """The value that ``text`` stands for.

        Raises:
            UsageError: it stands for none; says what would.
        """
        if self.kind is bool and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if self.choices and text not in self.choices:
            raise UsageError(f"{self.name} is one of {', '.join(self.choices)}, not {text!r}")
        if self.choices or self.kind is str:
            if not text:
                raise UsageError(f"{self.name} has no value")
            return text
        try:
            value: float = self.kind(text)
        except ValueError:
            value = float("nan")
        least, most = self.limits or (float("-inf"), float("inf"))
        if not least <= value <= most:  # nor is NaN
            what = "a whole number" if self.kind is int else "a number"
            raise UsageError(f"{self.name} is {what}{self._bounds()}, not {text!r}")
        return value

    def _bounds(self) -> str:
        if self.limits is None:
            return ""
        most = "" if self.limits.most == float("inf") else f", at most {self.limits.most:g}"
        return f", at least {self.limits.least:g}{most}"


def parameters(kind: type) -> dict[str, Parameter]:
    """The parameters of the policy class ``kind``, by name.

    Raises:
        UsageError: a field is of another type.
    """
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: _parameter(kind, one, hints[one.name]) for one in fields(kind)}


def _parameter(kind: type, one: Field[Any], hint: Any) -> Parameter:  # noqa: ANN401 -- a type's description
    limits = None
    if get_origin(hint) in (UnionType, Union):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        limits = next((note for note in notes if isinstance(note, Range)), None)
    default = None if one.default is MISSING else one.default
    if get_origin(hint) is Literal:
        return Parameter(one.name, str, tuple(map(str, get_args(hint))), None, default)
    if hint not in (bool, int, float, str):
        raise UsageError(f"{kind.__name__}.{one.name}: a parameter is a Literal, bool, int, float or str, not {hint}")
    return Parameter(one.name, hint, ("true", "false") if hint is bool else (), limits, default)


def values(policy: Policy) -> dict[str, Value]:
    """The parameters of ``policy`` as it is set, defaults included."""
    return {name: getattr(policy, name) for name in parameters(type(policy))}

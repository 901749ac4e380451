"""What ``--policy`` says: which policies, with which parameters, and sweeps and combinations of them.

    spec   = part *("+" part)                      all at once: a combination
    part   = (name | path ".py") [":" piece *("," piece)]
    piece  = key "=" value | value                 without "=" one more value of the key before it: a sweep

So ``batched_copy:threads=1,2,4,engine=dma`` is three policies, ``counter_early_exit+batched_copy`` is one.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from tracekit import registry
from tracekit.errors import UsageError
from tracekit.policies import Chosen, _file
from tracekit.policies._combination import combine
from tracekit.policies._parameters import Value, parameters, values

_PACKAGE = "tracekit.policies"
# of two parts: not the sign of an exponent, nor one in the name of a file
_PLUS = re.compile(r"\+(?=[A-Za-z_./~])")
_IS_PART = re.compile(r"[a-z_][a-z0-9_]*(:.*)?|.*\.py(:.*)?", re.DOTALL)


def parse(text: str) -> list[Chosen]:
    """The policies that ``text`` names: more than one for a sweep.

    Raises:
        UsageError: no such policy, parameter or value, or no such combination; says which there are, or why.
    """
    parts = [list(_part(text, part)) for part in _parts(text)]
    return [_together(list(chosen)) for chosen in product(*parts)]


def describe(name: str) -> dict[str, Any]:
    """Name, first line of text, needed events and parameters (choices or limits, default) of one policy."""
    kind = kind_of(name)
    return {
        "name": name,
        "text": (kind.__doc__ or "").strip().splitlines()[0],
        "needs": list(kind.needs),
        "touches": list(getattr(kind, "touches", ())),
        "params": {
            key: {"usage": one.usage, "choices": list(one.choices), "default": one.default}
            for key, one in parameters(kind).items()
        },
    }


def kind_of(name: str) -> Any:  # noqa: ANN401 -- a class of Policy, whose fields nobody knows
    """The class of the policy ``name``, or of the one in the file ``name``."""
    if name.endswith(".py"):
        return _file.load(Path(name))
    return registry.load(_PACKAGE, name).POLICY


def _parts(text: str) -> list[str]:
    """``a:k=1e+3+./b.py`` → ``a:k=1e+3``, ``./b.py``."""
    parts = [""]
    start = 0
    for plus in _PLUS.finditer(text):
        if _IS_PART.fullmatch(text[start : plus.start()]):
            parts[-1] = text[start : plus.start()]
            parts.append("")
            start = plus.end()
    parts[-1] = text[start:]
    return parts


def _part(text: str, part: str) -> Iterator[Chosen]:
    name, pieces = _name(part)
    kind, known = kind_of(name), _parameters_of(name)
    given: dict[str, list[tuple[str, Value]]] = {}
    last = None
    for piece in filter(None, pieces.split(",")):
        key, equals, value = piece.partition("=")
        if not equals and last is not None:
            key, value = last, piece
        elif key not in known or not equals:
            takes = "; ".join(one.usage for one in known.values()) or f"{name} takes none"
            raise UsageError(f"{text}: {piece!r} is not a parameter of {name}: {takes}")
        elif key in given:
            raise UsageError(f"{text}: {key} is given twice; more values of one key are {key}=1,2,…")
        try:
            given.setdefault(key, []).append((value, known[key].read(value)))
        except UsageError as error:
            raise UsageError(f"{text}: {error}") from error
        last = key
    for chosen in product(*given.values()):
        said = ",".join(f"{key}={value}" for key, (value, _) in zip(given, chosen, strict=True))
        policy = kind(**{key: value for key, (_, value) in zip(given, chosen, strict=True)})
        yield Chosen(f"{name}:{said}" if said else name, Path(name).stem, policy, values(policy))


def _name(part: str) -> tuple[str, str]:
    """Name or path, and the parameters; a path may have colons of its own."""
    path, python, pieces = part.rpartition(".py:")
    if python:
        return f"{path}.py", pieces
    if part.endswith(".py"):
        return part, ""
    name, _, pieces = part.partition(":")
    return name, pieces


@cache
def _parameters_of(name: str) -> Any:  # noqa: ANN401
    return parameters(kind_of(name))


def _together(parts: list[Chosen]) -> Chosen:
    if len(parts) == 1:
        return parts[0]
    params = {f"{one.name}.{key}": value for one in parts for key, value in one.params.items()}
    spec, name = ("+".join(getattr(one, what) for one in parts) for what in ("spec", "name"))
    return Chosen(spec, name, combine([(one.name, one.policy) for one in parts]), params)

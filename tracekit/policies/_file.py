"""A policy in a user's own file: the same protocol (``tracekit policies --template`` prints one to begin with)."""

import dataclasses
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tracekit.errors import UsageError
from tracekit.policies import Judgement, Policy
from tracekit.policies._parameters import parameters

_HELP = "tracekit policies --template prints one that works"


@cache
def load(path: Path) -> Any:  # noqa: ANN401 -- a class of Policy, whose fields nobody knows
    """The class ``POLICY`` of the Python file ``path``.

    Raises:
        UsageError: it cannot be read or run, or is no policy; names the line.
    """
    name = f"tracekit_policy_of_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UsageError(f"{path}:{_line(error, path)}: {_said(error)}") from error
    kind = getattr(module, "POLICY", None)
    if not isinstance(kind, type):
        raise UsageError(f"{path}: has no class POLICY; {_HELP}")
    _check(path, kind)
    return kind


def _check(path: Path, kind: type) -> None:
    at = f"{path}: {kind.__name__}"
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UsageError(f"{at} is no @dataclass(frozen=True); {_HELP}")
    if not callable(getattr(kind, "judge", None)):
        raise UsageError(f"{at} has no judge(self, ops); {_HELP}")
    for name in ("needs", "touches"):
        value = getattr(kind, name, () if name == "touches" else None)
        if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{at}.{name} is no tuple of names; {_HELP}")
    for one in dataclasses.fields(kind):
        if one.default is dataclasses.MISSING:
            raise UsageError(f"{at}.{one.name} has no default; every parameter needs one")
    try:
        parameters(kind)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def judge(name: str, policy: Policy, ops: pl.DataFrame) -> Judgement:
    """The judgement of ``policy`` on ``ops``, checked, where the policy comes from a file of the user's.

    Raises:
        UsageError: it failed, or what it returned is no judgement; names file and line.
    """
    module = sys.modules[type(policy).__module__]
    path = Path(getattr(module, "__file__", None) or name)
    if not module.__name__.startswith("tracekit_policy_of_user_"):
        return policy.judge(ops)
    try:
        judgement = policy.judge(ops)
    except Exception as error:
        raise UsageError(f"{path}:{_line(error, path)}: judge: {_said(error)}") from error
    if not isinstance(judgement, Judgement):
        raise UsageError(f"{path}: judge returned {type(judgement).__name__}, not a Judgement")
    for what, given in {"executed": judgement.executed, **judgement.added}.items():
        counts = np.asarray(given)
        if counts.shape != (len(ops),) or counts.dtype != np.int64:
            got = f"{counts.dtype}{list(counts.shape)}"
            raise UsageError(f"{path}: judge: {what} is {got}, not int64[{len(ops)}], one for each operation")
        if (counts < 0).any():
            raise UsageError(f"{path}: judge: {what} has a count below 0")
    return judgement


def _line(error: Exception, path: Path) -> int | str:
    """Where in ``path`` it happened; a question mark for nowhere in it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
    return frames[-1].lineno or "?" if frames else "?"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}"

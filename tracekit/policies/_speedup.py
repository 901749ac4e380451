"""How much faster several channels copy a batch than one CPU: a table by folio size, measured somewhere.

The table (``schemas/copy_speedup.toml``, or a user's own) has throughputs of the whole call. With F the share of the
call that is copying and R its throughput against the baseline, the copy alone is S times as fast (MODEL.md A.2):

    S = F / (1/R - (1 - F))

F is known for some sizes; between them it is interpolated, and the interval of S is that of F over all of them.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tracekit import resources
from tracekit.errors import UsageError
from tracekit.policies import Floats, Ints

# A copy is at most this many times as fast: where the table alone sets no limit
_MOST = 64.0


class Speedups(NamedTuple):
    """Attributes.

    folio_bytes: float64[n_sizes], rising.
    channels: of each engine, rising.
    speedup: of each engine, float64[3, n_channels, n_sizes]: low, best, high.
    setup_copies: of each engine, low, best and high: setup of a batch / time in which one CPU copies 2 MiB.
    """

    folio_bytes: Floats
    channels: dict[str, list[int]]
    speedup: dict[str, Floats]
    setup_copies: dict[str, tuple[float, float, float]]

    def of(self, engine: str, folio_bytes: Ints, channels: Ints) -> Floats:
        """float64[3, n]: low, best and high for folios of these sizes on so many channels.

        Between sizes and between numbers of channels it is interpolated over their logarithms, beyond them it stays.
        """
        found = np.empty((3, len(folio_bytes)))
        given = np.stack([folio_bytes, channels])
        # neighbours are alike, as a rule, and what is looked up once need not be sorted
        first = np.flatnonzero((np.diff(given, prepend=-1) != 0).any(axis=0))
        pairs, where = np.unique(given[:, first], axis=1, return_inverse=True)
        where = np.repeat(where.ravel(), np.diff(np.append(first, len(folio_bytes))))
        sizes, known = np.log(self.folio_bytes), np.log(self.channels[engine])
        for end in range(3):
            of_pair = [
                np.interp(
                    np.log(max(count, 1)),
                    known,
                    [np.interp(np.log(max(size, 1)), sizes, row) for row in self.speedup[engine][end]],
                )
                for size, count in pairs.T
            ]
            found[end] = np.asarray(of_pair, dtype=np.float64)[where] if of_pair else 0
        return found


def load(path: str | None) -> Speedups:
    """The table in the file ``path``; None: the one that comes with tracekit.

    Raises:
        UsageError: it cannot be read, or lacks something; names the file and what.
    """
    file = resources.schemas() / "copy_speedup.toml" if path is None else Path(path)
    try:
        return _table(tomllib.loads(file.read_text()))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError, UsageError) as error:  # ValueError: TOML's, UTF-8's
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UsageError(f"{file}: is no table of speed-ups: {what}; schemas/copy_speedup.toml is one") from error


def _table(content: dict[str, Any]) -> Speedups:
    sizes = _rising("folio_bytes", content["folio_bytes"])
    baseline = _numbers("baseline", content["baseline"], len(sizes))
    known = _rising("copy_share.folio_bytes", content["copy_share"]["folio_bytes"])
    shares = _numbers("copy_share.share", content["copy_share"]["share"], len(known))
    if shares.max() > 1:
        raise UsageError("copy_share.share is above 1")
    usual = np.interp(np.log(sizes), np.log(known), shares)
    channels: dict[str, list[int]] = {}
    speedup: dict[str, list[Floats]] = {}
    for engine in sorted(content["engine"], key=lambda one: int(one["channels"])):
        name, count = str(engine["name"]), int(engine["channels"])
        gain = _numbers(f"throughput of {name}", engine["throughput"], len(sizes)) / baseline
        ends = np.stack([_of_copy(gain, share) for share in (np.full(len(sizes), shares.max()), usual, shares.min())])
        ends = np.stack([ends.min(axis=0), ends[1], ends.max(axis=0)])
        if (name, count) == ("cpu", 1):  # one CPU copies what one CPU copied: what the table shows is its noise
            ends = np.stack([np.minimum(ends[0], 1), np.ones(len(sizes)), np.maximum(ends[2], 1)])
        channels.setdefault(name, []).append(count)
        speedup.setdefault(name, []).append(ends)
    for name in ("cpu", "dma"):
        if channels.get(name, [0])[0] != 1:
            raise UsageError(f"has no engine {name} with channels = 1")
    single = content["single"]
    setups = {name: (single["baseline"] / single[name] - 1) * _two_mib(single["folio_bytes"]) for name in channels}
    return Speedups(
        sizes,
        channels,
        {name: np.stack(rows, axis=1) for name, rows in speedup.items()},
        # a batch of one gains nothing, so all that it takes longer is setup; half and twice that: one measurement
        {name: (max(copies, 0) / 2, max(copies, 0), 2 * max(copies, 0)) for name, copies in setups.items()},
    )


def _two_mib(folio_bytes: int) -> float:
    return float(folio_bytes) / 2**21


def _of_copy(gain: Floats, share: Floats | float) -> Floats:
    left = 1 / gain - (1 - share)  # of the call's time: the copy's part, now
    return np.asarray(np.where(left > share / _MOST, share / np.maximum(left, share / _MOST), _MOST), dtype=np.float64)


def _rising(name: str, numbers: list[float]) -> Floats:
    values = _numbers(name, numbers, len(numbers))
    if (np.diff(values) <= 0).any():
        raise UsageError(f"{name} does not rise")
    return values


def _numbers(name: str, numbers: list[float], count: int) -> Floats:
    values = np.asarray(numbers, dtype=np.float64)
    if values.shape != (count,) or not count or not (values > 0).all():
        raise UsageError(f"{name} is not {count} numbers above 0")
    return values

"""What a calibration hands on: prices with all their uncertainty, as draws of one joint distribution.

Draw 0 of every array is the estimate itself. Each further draw is one consistent world: gaps resampled, constants
moved within what is known of them, and where a visit is dearer its probe is cheaper, for the gap that holds both is
what was seen. So whatever is computed from prices keeps what is common to them, and its 90 % interval lies between
the 5th and 95th percentile of its draws.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tracekit.machine.timeline import Source

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 401
_SEED = 20_251_121  # any: fixed, so that the same trace gives the same report


@dataclass(frozen=True)
class Prices:
    """Nanoseconds of the trace's clock, float64[DRAWS] each.

    Attributes:
        overhead_ns: of one record, by how it was taken.
        price_ns: of one operation, by its price key (``keys``); missing: this trace cannot tell.
    """

    overhead_ns: dict[Source, Floats]
    price_ns: dict[str, Floats]


@dataclass(frozen=True)
class CostModel:
    """Attributes.

    prices: None where the trace has no probes to read them off.
    margin: what remains of the ratio's uncertainty when all prices are right, ± as a share.
    source: one_trace, two_densities, phases or table: what the overhead rests on; none: no prices.
    samples: gaps that a price rests on, by name.
    residual: |prices x counts - seen| / seen over the gaps between visits; None: nothing to compare.
    how: one sentence per price, for the report.
    """

    prices: Prices | None
    margin: float
    source: str
    samples: dict[str, int]
    residual: float | None
    how: list[str] = field(default_factory=list)


def generator(name: str) -> np.random.Generator:
    """Random numbers of their own for each purpose: what one needs more of does not move another."""
    return np.random.default_rng([_SEED, *name.encode()])


def uncertain(name: str, best: float, deviation: float) -> Floats:
    """A constant as draws: normal around ``best``, which is draw 0."""
    draws = best + deviation * generator(name).standard_normal(DRAWS)
    draws[0] = best
    return draws


def weighted(a: Floats, b: Floats) -> Floats:
    """float64[DRAWS]: two answers to one question, each weighted by what it leaves open (1 / variance), draw by draw.

    Where they contradict each other the deviation is larger than either says (Birge's ratio).
    """
    variance = np.maximum([np.var(a), np.var(b)], 1e-9)
    weight = 1 / variance
    both = (weight[0] * a + weight[1] * b) / weight.sum()
    apart = (a[0] - b[0]) ** 2 / float(variance.sum())
    widened: Floats = both[0] + (both - both[0]) * max(1.0, float(np.sqrt(apart)))
    return widened


def fixed(value: float) -> Floats:
    """What is known exactly."""
    return np.full(DRAWS, value)

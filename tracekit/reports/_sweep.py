"""Sweeps among the policies of a summary: one parameter, several values; and their pictures."""

from typing import TYPE_CHECKING, Any, NamedTuple

from tracekit.reports._blocking import time_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

LEAST_VALUES = 3  # that a curve is drawn through
_LOGARITHMIC = 8  # greatest / least value from which the axis is
_STYLES = ("-", "--", ":", "-.")
_COLOURS = {"first_ns": "#b5442e", "mean_ns": "#31688e", "worst_ns": "#777777"}
_NAMES = {"first_ns": "first folio of a batch", "mean_ns": "mean of all folios", "worst_ns": "worst"}


class Sweep(NamedTuple):
    """``lines``: by the other parameters, policies in the order of the value of ``key``."""

    name: str
    key: str
    lines: dict[str, list[tuple[float, dict[str, Any]]]]


def sweeps(policies: list[dict[str, Any]]) -> list[Sweep]:
    """Every parameter of a judged policy that has enough numbers as values; of several, the one with most."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for policy in policies:
        if policy["judgeable"]:
            by_name.setdefault(policy["name"], []).append(policy)
    found = []
    for name, group in by_name.items():
        numbers = {key: {v for p in group if _is_number(v := p["params"].get(key))} for key in group[0]["params"]}
        key = max(numbers, key=lambda one, numbers=numbers: len(numbers[one]), default=None)  # type: ignore[misc]
        if key is None or len(numbers[key]) < LEAST_VALUES:
            continue
        lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for policy in group:
            if _is_number(policy["params"].get(key)):
                lines.setdefault(_others(policy, group, key), []).append((policy["params"][key], policy))
        found.append(Sweep(name, key, {label: sorted(line, key=lambda at: at[0]) for label, line in lines.items()}))
    return found


def draw(sweep: Sweep, place: "SubFigure") -> None:
    """Time over the parameter, and, where folios are batched, how long they stay blocked, side by side."""
    blocked = all(_timed(policy) for line in sweep.lines.values() for _, policy in line)
    time, *rest = place.subplots(1, 2 if blocked else 1, squeeze=False)[0]
    _draw_time(time, sweep, in_batches=blocked)
    for axes in rest:
        _draw_waits(axes, sweep)
    for axes in (time, *rest):
        values = sorted({value for line in sweep.lines.values() for value, _ in line})
        if values[0] > 0 and values[-1] / values[0] >= _LOGARITHMIC:
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set_xlabel(f"{sweep.name}: {sweep.key}", parse_math=False)


def _draw_time(axes: "Axes", sweep: Sweep, *, in_batches: bool) -> None:
    for style, (label, line) in zip(_STYLES * len(sweep.lines), sweep.lines.items(), strict=False):
        if in_batches:
            points = [(x, time_of(policy["blocking"], "total_ns", "policy")) for x, policy in line]
        else:
            points = [(x, policy["ratio"]) for x, policy in line if policy["ratio"] is not None]
        scale = 1e6 if in_batches else 1.0
        _curve(axes, points, scale, color="#31688e", linestyle=style, label=label or None)
    traced = next(iter(sweep.lines.values()))[0][1]
    as_traced = time_of(traced["blocking"], "total_ns", "traced")["median"] / 1e6 if in_batches else 1.0
    axes.axhline(as_traced, color="#888", linewidth=1, linestyle=":", label="as traced")
    axes.set_ylabel("all batches, ms" if in_batches else "predicted time / time as traced")
    low, high = axes.get_ylim()
    if low > 0 and high / low >= _LOGARITHMIC:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_waits(axes: "Axes", sweep: Sweep) -> None:
    for number, (label, line) in enumerate(sweep.lines.items()):
        for what, colour in _COLOURS.items():
            points = [(x, time_of(policy["blocking"], what, "policy")) for x, policy in line]
            name = f"{_NAMES[what]} {label}".strip()
            _curve(axes, points, 1e3, color=colour, linestyle=_STYLES[number % len(_STYLES)], label=name)
            if not number:
                traced = time_of(line[0][1]["blocking"], what, "traced")["median"] / 1e3
                axes.axhline(traced, color=colour, linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylabel("blocked, µs (dotted: as traced)")
    axes.legend(frameon=False)


def _curve(axes: "Axes", points: list[tuple[float, dict[str, float]]], scale: float, **look: Any) -> None:  # noqa: ANN401
    x = [at for at, _ in points]
    low, median, high = ([times[end] / scale for _, times in points] for end in ("low", "median", "high"))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.plot(x, median, marker="o", markersize=4, **look)


def _timed(policy: dict[str, Any]) -> bool:
    return bool(policy.get("blocking")) and policy["blocking"]["reason"] is None


def _others(policy: dict[str, Any], group: list[dict[str, Any]], key: str) -> str:
    """What tells the lines of a sweep apart: the parameters beside ``key`` that vary."""
    params = policy["params"]
    vary = [one for one in params if one != key and len({str(p["params"].get(one)) for p in group}) > 1]
    return ",".join(f"{one}={params[one]}" for one in vary)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

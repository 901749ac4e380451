"""The one picture: VMA visits under each policy, the predicted ratio of each with its interval, and sweeps."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from tracekit.reports._sweep import draw, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VISITS = ("try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit")
_COLOURS = ("#9db8d2", "#31688e")


def figure(document: dict[str, Any]) -> "Figure":
    """Two panels that share the list of policies, and below them a row for each sweep, which is not in the list."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- half a second; only when something is drawn

    judged = [policy for policy in document["policies"] if policy["judgeable"]]
    swept = sweeps(judged)
    curves = {policy["spec"] for sweep in swept for line in sweep.lines.values() for _, policy in line}
    judged = [policy for policy in judged if policy["spec"] not in curves]
    heights = [1.6 + 0.5 * max(len(judged), 1), *[4.0] * len(swept)]
    picture = Figure(figsize=(11, sum(heights)), layout="constrained")
    above, *below = picture.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for sweep, place in zip(swept, below, strict=True):
        draw(sweep, place)
    visits, ratio = above.subplots(1, 2, sharey=True)
    names = [policy["spec"].replace(":", "\n", 1) for policy in judged]
    visits.set_yticks(range(len(names)), names)
    visits.invert_yaxis()
    _draw_visits(visits, judged)
    _draw_ratios(ratio, judged)
    title = f"{document['trace']['source']['name']}: fidelity {document['fidelity']}"
    picture.suptitle(title, parse_math=False)  # a file's name may have dollars
    return picture


def save(document: dict[str, Any], kind: str) -> bytes:
    """The figure as an ``svg`` or ``png`` file, the same bytes for the same document."""
    from matplotlib import rc_context  # noqa: PLC0415

    out = BytesIO()
    with rc_context({"svg.hashsalt": "tracekit", "svg.fonttype": "none"}):
        figure(document).savefig(out, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _draw_visits(axes: "Axes", policies: list[dict[str, Any]]) -> None:
    left = [0] * len(policies)
    for name, colour in zip(_VISITS, _COLOURS, strict=True):
        counts = [policy["operations"].get(name, {"policy": 0})["policy"] for policy in policies]
        axes.barh(range(len(policies)), counts, left=left, color=colour, label=name.split(".")[0])
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_xlabel("VMA visits")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _draw_ratios(axes: "Axes", policies: list[dict[str, Any]]) -> None:
    axes.axvline(1, color="#888", linewidth=1, linestyle=":")
    for place, policy in enumerate(policies):
        ratio = policy["ratio"]
        if ratio is None:
            axes.text(0.5, place, "no number: see the note", va="center", ha="center", color="#a33")
            continue
        axes.plot([ratio["low"], ratio["high"]], [place, place], color=_COLOURS[1], linewidth=3, alpha=0.5)
        axes.plot([ratio["median"]], [place], "o", color=_COLOURS[1])
    axes.set_xlim(left=0)
    axes.set_xlabel("predicted time / time as traced (90 % interval)")

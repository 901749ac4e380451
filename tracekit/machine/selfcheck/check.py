"""What one check of the machine against the trace says."""

from typing import Any, NamedTuple, Self

import polars as pl


class Check(NamedTuple):
    """A number of things that the machine predicts and the trace shows.

    Attributes:
        name: ``area.what``.
        what: one line for people.
        compared: how many of them both sides know.
        equal: in how many both agree.
        threshold: share of disagreement above which the result is marked.
        reason: why nothing could be compared, and which events it would need; None: something was.
    """

    name: str
    what: str
    compared: int
    equal: int
    threshold: float
    reason: str | None = None

    @classmethod
    def of(cls, name: str, what: str, right: pl.Series, threshold: float, reason: str) -> Self:
        """The check of which ``right`` (bool[n]) says whether both agree, thing by thing; ``reason``: why n is 0."""
        return cls(name, what, len(right), int(right.sum()), threshold, None if len(right) else reason)

    @property
    def residual(self) -> float | None:
        """Share of ``compared`` that disagrees; None: nothing was compared."""
        return 1 - self.equal / self.compared if self.compared else None

    @property
    def status(self) -> str:
        """``ok``, ``over`` the threshold, or ``not possible``."""
        if self.residual is None:
            return "not possible"
        return "over" if self.residual > self.threshold else "ok"

    def as_json(self) -> dict[str, Any]:
        """The fields as summary.json holds them."""
        residual = None if self.residual is None else round(self.residual, 6)
        return {**self._asdict(), "residual": residual, "status": self.status}

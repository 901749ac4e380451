"""Reads what ``perf script -F comm,pid,tid,cpu,time,event,trace --ns`` printed. Knows nothing of tracekit."""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CAPTURES = Path(__file__).parents[3] / "shared" / "captures"

_LINE = re.compile(
    r"^\s*(?P<comm>.*?)\s+(?:(?P<pid>-?\d+)/)?(?P<tid>-?\d+)\s+\[(?P<cpu>\d+)\]\s+(?P<sec>\d+)\.(?P<nsec>\d{9}):"
    r"\s+(?P<event>[A-Za-z0-9_]+:[A-Za-z0-9_]+): ?(?P<text>.*)$"
)
_PAIR = re.compile(r"(\w+)=((?:(?!\s+\w+=).)*)")


UNPRINTED = 1 << 40
"""The pid where perf was not asked for it."""


class Line(NamedTuple):
    """One sample as perf printed it."""

    comm: str | None  # None: perf knows none and prints ":tid"
    pid: int | None  # None: -1, a task that is no more
    tid: int | None
    cpu: int
    time_ns: int
    event: str
    text: str

    def fields(self) -> dict[str, str]:
        """``name=value`` pairs of the text, values stripped of what separates them."""
        return {name: value.strip().rstrip(",") for name, value in _PAIR.findall(self.text)}


def read_script(folder: Path) -> Iterator[Line]:
    """All samples that the oracle text of ``folder`` shows, in its order."""
    path = folder / "oracle.script.txt"
    text = (
        path.read_text() if path.exists() else lzma.decompress((folder / "oracle.script.txt.xz").read_bytes()).decode()
    )
    for line in text.split("\n"):
        found = _LINE.match(line)
        if found is None:
            assert not line.strip() or line.startswith("\t"), f"not understood: {line!r}"
            continue
        comm, pid, tid = found["comm"], found["pid"], int(found["tid"])
        yield Line(
            None if comm in {f":{tid}", ":-1"} else comm,
            UNPRINTED if pid is None else None if pid == "-1" else int(pid),
            None if tid == -1 else tid,
            int(found["cpu"]),
            int(found["sec"]) * 10**9 + int(found["nsec"]),
            found["event"],
            found["text"],
        )


def regular_captures() -> list[Path]:
    """Folders with a regular, uncompressed, single perf.data file."""
    if not CAPTURES.is_dir():
        return []
    found = (path.parent for path in sorted(CAPTURES.glob("*/*/perf.data")))
    return [folder for folder in found if folder.name not in {"rec.perf-z", "rec.perf-threads"}]

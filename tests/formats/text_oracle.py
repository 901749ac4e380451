"""Reads text traces line by line, with plain regular expressions. Knows nothing of tracekit."""

import lzma
import re
from collections import Counter
from pathlib import Path

CAPTURES = Path(__file__).parents[3] / "shared" / "captures"

_TASK = re.compile(
    r"^(?P<comm>.*)-(?P<tid>\d+)\s+(?:\(\s*(?P<tgid>\d+|-+)\)\s+)?\[(?P<cpu>\d+)\]\s+(?:(?P<flags>\S{4,5})\s+)?"
    r"(?P<sec>\d+)\.(?P<part>\d+): (?P<rest>.*)$"
)
_LATENCY = re.compile(
    r"^(?P<comm>.*)-(?P<tid>\d+)\s+(?P<cpu>\d+)(?P<flags>[^\s\d]\S{4})\s+(?P<us>\d+)us.: (?P<rest>.*)$"
)
_RAW = re.compile(r"^\d+ \d+ \d+ type: (\d+)$")
_PERF = re.compile(r"^.*?\s\d+\.\d+:\s+(?P<event>\w+:\w+): ?.*$")


def text_of(folder: Path, name: str) -> bytes:
    """``name`` in ``folder``, plain or packed."""
    plain = folder / name
    return plain.read_bytes() if plain.exists() else lzma.decompress((folder / f"{name}.xz").read_bytes())


def having(name: str) -> list[Path]:
    """Folders of captures with the text ``name``."""
    return sorted({path.parent for path in CAPTURES.glob(f"*/*/{name}*")})


def event_of(rest: str) -> str:
    """What a line of tracefs or trace-cmd is an event of."""
    if call := re.match(r"sys_(\w+)\(", rest):
        return f"sys_enter_{call[1]}"
    if call := re.match(r"sys_(\w+) -> ", rest):
        return f"sys_exit_{call[1]}"
    if rest.startswith("<stack trace"):
        return "kernel_stack"
    if re.match(r"\S+ <-", rest):
        return "function"
    name, _, message = rest.partition(":")
    return f"{name} probe" if message.lstrip().startswith("(") else name


def lines(text: bytes) -> list[re.Match[str]]:
    """The events of a trace, trace_pipe or trace-cmd report."""
    found = (_TASK.match(line) or _LATENCY.match(line) for line in text.decode("utf-8", "replace").split("\n"))
    return [line for line in found if line is not None]


def count_tasks(text: bytes) -> Counter[str]:
    """Events by name; those whose message starts with an address in brackets are probes."""
    types = (_RAW.match(line) for line in text.decode().split("\n"))
    raw = Counter(f"tracepoint_{found[1]}" for found in types if found)
    return raw + Counter(event_of(line["rest"]) for line in lines(text))


def count_perf(text: bytes) -> Counter[str]:
    """Events by ``system:event``."""
    return Counter(
        found["event"] for line in text.decode("utf-8", "replace").split("\n") if (found := _PERF.match(line))
    )

"""What the options of a trace.dat file say of machine and recorder → the manifest."""

import re

from tracekit.formats import TraceMetadata, Truncation
from tracekit.formats import _trace_dat_header as header
from tracekit.formats._trace_dat_clock import Clock
from tracekit.formats._trace_dat_header import Contents

_STATS = re.compile(r"^(?P<name>[a-z ]+):\s*(?P<value>[0-9.]+)\s*$")


def describe(
    contents: Contents, clock: Clock, losses: list[int], anomalies: dict[str, int], truncated: Truncation | None
) -> TraceMetadata:
    """What the header and the walk say of the trace; ``losses``: events lost each time, −1 for an unknown number."""
    uname = _text(contents, header.UNAME).split()
    top = next((info for info in contents.buffers if not info.name), contents.buffers[0])
    machine: dict[str, object] = {
        # uname -s -n -r -m: the name of the host is nobody's business
        "release": uname[2] if len(uname) >= 4 else None,
        "arch": uname[-1] if len(uname) >= 4 else None,
        "page_size": contents.page_bytes,
        "cpus": _cpus(contents),
        "nodes": None,
    }
    recorder: dict[str, object] = {
        "name": "trace-cmd",
        "version": _text(contents, header.VERSION) or None,
        "cmdline": None,
    }
    known = [number for number in losses if number >= 0]
    total = sum(known) if len(known) == len(losses) else None
    lost: dict[str, object] = {"events": total, "records": len(losses)}
    return TraceMetadata(
        "trace.dat", contents.file_bytes, machine, recorder, clock.describe(top.clock), lost, anomalies, truncated,
        _features(contents, clock),
    )  # fmt: skip


def _features(contents: Contents, clock: Clock) -> dict[str, object]:
    found: dict[str, object] = {
        "file_version": contents.version,
        "compression": contents.codec.name,
        "big_endian": contents.order == ">",
        "sub_buffer_bytes": contents.buffers[0].layout.page_bytes,
        # positions (seq): offsets in the file; or, of compressed data, the CPU's place in its table << 40 | offset in
        # its pages
        "seq": "cpu_and_page_offset" if contents.codec.name != "none" else "file_offset",
    }
    instances = {info.name: clock.describe(info.clock) for info in contents.buffers if info.name}
    if instances:
        found["instances"] = instances
    trace_id = contents.option(header.TRACEID)
    if trace_id is not None and len(trace_id) >= 8:
        found["trace_id"] = hex(int.from_bytes(trace_id[:8], "little" if contents.order == "<" else "big"))
    stats = [_stats(data) for number, data in contents.options if number == header.CPUSTAT]
    if any(stats):
        found["cpu_stats"] = [one for one in stats if one]
    if contents.texts:
        found["latency_texts"] = contents.texts
    unread = sorted({number for number, _ in contents.options if number > header.MODULES})
    if unread:
        found["unknown_options"] = unread
    return found


def _cpus(contents: Contents) -> int | None:
    """CPUs of the machine; at least as many as have data."""
    data = contents.option(header.CPUCOUNT)
    if data is not None and len(data) >= 4:
        return int.from_bytes(data[:4], "little" if contents.order == "<" else "big")
    return max((row.cpu + 1 for info in contents.buffers for row in info.cpus), default=None)


def _text(contents: Contents, number: int) -> str:
    data = contents.option(number) or b""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _stats(data: bytes) -> dict[str, object]:
    """What per_cpu/cpuN/stats says: "overrun: 0"; an instance's begin with a line of its own."""
    found: dict[str, object] = {}
    for line in data.split(b"\0", 1)[0].decode("utf-8", "replace").splitlines():
        if line.startswith("CPU:"):
            found["cpu"] = int(line[4:]) if line[4:].strip().isdecimal() else None
        elif (match := _STATS.match(line)) is not None:
            text = match["value"]
            found[match["name"].replace(" ", "_")] = int(text) if text.isdecimal() else text
    return found

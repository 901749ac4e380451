"""Builds perf.data files byte by byte, for what no capture at hand shows."""

import struct
from typing import NamedTuple

FORMAT = """name: {name}
ID: {number}
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

{fields}
print fmt: {print_fmt}
"""

SAMPLE_TYPE = 1 | 2 | 4 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 16  # IP TID TIME CPU PERIOD RAW IDENTIFIER
SAMPLE_ID_ALL = 1 << 18


class Event(NamedTuple):
    """A tracepoint and its own fields: (declaration, offset, size, signed)."""

    number: int
    system: str
    name: str
    fields: tuple[tuple[str, int, int, int], ...] = (("u64 value", 8, 8, 0),)
    print_fmt: str = '"value=%llu", REC->value'

    @property
    def text(self) -> str:
        lines = "\n".join(
            f"\tfield:{decl};\toffset:{offset};\tsize:{size};\tsigned:{signed};"
            for decl, offset, size, signed in self.fields
        )
        return FORMAT.format(name=self.name, number=self.number, fields=lines, print_fmt=self.print_fmt)


EVENT = Event(77, "test", "event")
ROUND = struct.pack("<IHH", 68, 0, 8)


def record(kind: int, body: bytes, misc: int = 0) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<IHH", kind, misc, 8 + len(body)) + body


def trailer(tid: int, time_ns: int, cpu: int, number: int = 1) -> bytes:
    return struct.pack("<IIQIIQ", tid, tid, time_ns, cpu, 0, number)


def sample(time_ns: int, cpu: int = 0, tid: int = 5, own: bytes | None = None, number: int = 1) -> bytes:
    """A sample of the event with id ``number``; its value is its time unless ``own`` says otherwise."""
    raw = struct.pack("<HBBI", 77, 1, 2, tid) + (struct.pack("<Q", time_ns) if own is None else own)
    raw += bytes(-(len(raw) + 4) % 8)
    head = struct.pack("<QQIIQIIQ", number, 0xFFFF, tid, tid, time_ns, cpu, 0, 1)
    return record(9, head + struct.pack("<I", len(raw)) + raw)


def comm(time_ns: int, tid: int, name: str, cpu: int = 0) -> bytes:
    text = name.encode() + b"\0"
    return record(3, struct.pack("<II", tid, tid) + text + bytes(-len(text) % 8) + trailer(tid, time_ns, cpu))


def fork(time_ns: int, tid: int, parent: int, cpu: int = 0) -> bytes:
    return record(7, struct.pack("<IIIIQ", tid, parent, tid, parent, time_ns) + trailer(parent, time_ns, cpu))


def gone(time_ns: int, tid: int, cpu: int = 0) -> bytes:
    return record(4, struct.pack("<IIIIQ", tid, 1, tid, 1, time_ns) + trailer(tid, time_ns, cpu))


def tracing_data(events: list[Event]) -> bytes:
    systems = sorted({event.system for event in events})
    out = b"\x17\x08\x44tracing0.6\0" + bytes([0, 8]) + struct.pack("<I", 4096)
    out += b"header_page\0" + struct.pack("<Q", 0) + b"header_event\0" + struct.pack("<Q", 0)
    out += struct.pack("<II", 0, len(systems))
    for system in systems:
        mine = [event.text.encode() for event in events if event.system == system]
        out += system.encode() + b"\0" + struct.pack("<I", len(mine))
        out += b"".join(struct.pack("<Q", len(text)) + text for text in mine)
    return out + struct.pack("<IIQ", 0, 0, 0)


def perf_data(data: bytes, events: list[Event] | None = None, *, killed: bool = False) -> bytes:
    """A whole file; event number n (from 1) has id n. ``killed``: as a recorder leaves it that is killed."""
    events = [EVENT] if events is None else events
    ids_at = 104
    attrs_at = ids_at + 8 * len(events)
    data_at = attrs_at + 144 * len(events)
    attrs = b""
    for place, event in enumerate(events):
        attr = struct.pack("<IIQQQQQ", 2, 128, event.number, 1, SAMPLE_TYPE, 4, SAMPLE_ID_ALL)
        attrs += attr.ljust(128, b"\0") + struct.pack("<QQ", ids_at + 8 * place, 8)
    ids = b"".join(struct.pack("<Q", place + 1) for place in range(len(events)))
    blob = tracing_data(events)
    size = 0 if killed else len(data)
    head = b"PERFILE2" + struct.pack("<QQ", 104, 144) + struct.pack("<QQ", attrs_at, len(attrs))
    head += struct.pack("<QQQQ", data_at, size, 0, 0) + struct.pack("<QQQQ", 0 if killed else 2, 0, 0, 0)
    features = b"" if killed else struct.pack("<QQ", data_at + len(data) + 16, len(blob)) + blob
    return head + ids + attrs + data + features

"""struct perf_event_attr: what was recorded, and how its samples look.

Source: include/uapi/linux/perf_event.h; tools/perf/util/session.c perf_event__attr_swap().
"""

from typing import NamedTuple

from tracekit.formats._cursor import Cursor

MIN_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0
TRACEPOINT = 2  # perf_event_attr.type

_SOFTWARE_DUMMY = (1, 9)
_CLOCKS = {0: "realtime", 1: "monotonic", 4: "monotonic_raw", 7: "boottime", 11: "tai"}
_NAMES = {
    0: ["cycles", "instructions", "cache-references", "cache-misses", "branches", "branch-misses", "bus-cycles",
        "stalled-cycles-frontend", "stalled-cycles-backend", "ref-cycles"],
    1: ["cpu-clock", "task-clock", "page-faults", "context-switches", "cpu-migrations", "minor-faults", "major-faults",
        "alignment-faults", "emulation-faults", "dummy", "bpf-output", "cgroup-switches"],
}  # fmt: skip


class Attr(NamedTuple):
    """One recorded event: the parts of struct perf_event_attr that decide how its samples look."""

    type: int
    config: int
    sample_type: int
    read_format: int
    flags: int
    clock_id: int
    ids: tuple[int, ...]  # one per CPU
    name: str | None = None  # as the file gives it
    branch_type: int = 0
    user_registers: int = 0  # mask
    kernel_registers: int = 0  # mask

    @property
    def sample_id_all(self) -> bool:
        """Whether kernel records that are no samples end with who, when and where."""
        return bool(self.flags >> 18 & 1)

    @property
    def inherit(self) -> bool:
        """Whether threads that come later are counted, too, each by itself."""
        return bool(self.flags >> 1 & 1)

    @property
    def clock(self) -> str:
        """Name of the clock that its times are of."""
        if not self.flags >> 25 & 1:
            return "perf"
        return _CLOCKS.get(self.clock_id, f"clock {self.clock_id}")

    @property
    def silent(self) -> bool:
        """Whether it has no samples of its own: perf's dummy only carries the records beside them."""
        return (self.type, self.config) == _SOFTWARE_DUMMY

    @property
    def generic_name(self) -> str:
        """What perf calls it where the file has no name for it."""
        names = _NAMES.get(self.type, [])
        return names[self.config] if self.config < len(names) else f"type_{self.type}_config_{self.config:#x}"


def parse_attr(entry: Cursor, room: int) -> Attr:
    """A struct perf_event_attr of at most ``room`` bytes; ``entry`` stands at its start, and after it at the end.

    Its own size says how much of it is there; a longer one is newer.
    """
    start = entry.position
    kind, size, config, _period, sample_type, read_format = entry.numbers("IIQQQQ", "attribute")
    flags = _flags(entry.take(8, "attribute"), entry.order)
    length = max(size, MIN_ATTR_BYTES)  # the first kernels wrote 0
    if length > room:
        raise entry.fail(f"attribute says it has {size} bytes, there is room for {room}")
    entry.position = start
    body = Cursor(entry.path, entry.take(length, "attribute").ljust(128, b"\0"), entry.offset + start, entry.order)
    body.position = 72
    branch_type, user_registers, _stack, clock_id, kernel_registers = body.numbers("QQIiQ", "attribute")
    return Attr(
        kind, config, sample_type, read_format, flags, clock_id, (), None, branch_type, user_registers, kernel_registers
    )


def _flags(eight: bytes, order: str) -> int:
    """The bit-fields: on a machine of the other byte order each byte's bits run the other way."""
    if order == ">":
        eight = bytes(int(f"{byte:08b}"[::-1], 2) for byte in eight)
    return int.from_bytes(eight, "little")

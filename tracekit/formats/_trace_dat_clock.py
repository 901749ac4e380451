"""Raw time stamps of a trace.dat file → times, as trace-cmd report computes them.

Source: trace-cmd.dat.v7.5.txt, options DATE, OFFSET, TIME_SHIFT, TSC2NSEC; lib/trace-cmd/trace-input.c
timestamp_calc(), timestamp_host_sync(), mul_u64_u32_shr(); kernel/trace/trace.c trace_clocks[] (in_ns).
"""

import struct
from typing import NamedTuple

import numpy as np

from tracekit.formats._trace_dat_header import DATE, OFFSET, TIME_SHIFT, TSC2NSEC, Contents

Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]
UInt64s = np.ndarray[tuple[int], np.dtype[np.uint64]]

NANOSECOND_CLOCKS = frozenset({"local", "global", "perf", "mono", "mono_raw", "boot", "tai", "tsc2nsec"})
"""Those whose values are nanoseconds. Not among them: uptime (jiffies), counter, x86-tsc, ppc-tb."""
_INTERPOLATE = 1  # TRACECMD_TSYNC_FLAG_INTERPOLATE
_MAX_SAMPLES = 1 << 20


class Shift(NamedTuple):
    """How one CPU of a guest's clock follows the host's: uint64/int64[n_samples], sorted by time."""

    time: UInt64s
    offset: Int64s
    scaling: UInt64s
    fraction: UInt64s


class Scale(NamedTuple):
    """ns = counter × mult >> shift."""

    mult: int
    shift: int
    offset: int  # what the counter read when it was determined; trace-cmd does not use it


class Clock:
    """What the options of a file say of its time stamps."""

    def __init__(self, contents: Contents) -> None:
        self.scale = _scale(contents)
        self.offset_ns = _text_number(contents.option(OFFSET))
        self.date_us = _text_number(contents.option(DATE))
        self.shifts, self.interpolate = _shifts(contents)

    def counts_ns(self, name: str) -> bool:
        """Whether times of a buffer with clock ``name`` are nanoseconds."""
        return name in NANOSECOND_CLOCKS or self.scale is not None

    def times(self, raw: UInt64s, number: int) -> Int64s:
        """int64[n] times of raw stamps of the CPU that is ``number`` in its buffer's table."""
        if number < len(self.shifts):
            raw = _shifted(raw, self.shifts[number], interpolate=self.interpolate)
        if self.scale is not None:
            raw = _scaled(raw, self.scale)
        total = self.offset_ns + 1000 * self.date_us
        if total:
            raw = raw + np.uint64(total & 0xFFFFFFFFFFFFFFFF)
        return raw.view(np.int64)

    def describe(self, name: str) -> dict[str, object]:
        """For the manifest: ``unit`` is "ns", or "counts" of a clock that must not be taken for time."""
        said: dict[str, object] = {
            "name": name or None,
            "unit": "ns" if self.counts_ns(name) else "counts",
            # trace-cmd --date: the times were moved to the time of day
            "wall_offset_ns": 0 if self.date_us else None,
            "offset_ns": self.offset_ns + 1000 * self.date_us,
        }
        if self.scale is not None:
            said["tsc2nsec"] = self.scale._asdict()
        if self.shifts:
            said["shifted_cpus"] = len(self.shifts)
        return said


def _text_number(data: bytes | None) -> int:
    """As strtoll(…, 0) reads it; 0 if it is none."""
    text = (data or b"").split(b"\0", 1)[0].decode("ascii", "replace").strip()
    try:
        return int(text, 0)
    except ValueError:
        return int(text) if text.isdecimal() else 0


def _scale(contents: Contents) -> Scale | None:
    data = contents.option(TSC2NSEC)
    if data is None or len(data) < 16:
        return None
    mult, shift, offset = struct.unpack(contents.order + "IIQ", data[:16])
    return Scale(mult, shift, offset) if mult and shift < 64 else None


def _scaled(raw: UInt64s, scale: Scale) -> UInt64s:
    """Counter × mult >> shift in more than 64 bits."""
    low, high = raw & np.uint64(0xFFFFFFFF), raw >> np.uint64(32)
    mult, shift = np.uint64(scale.mult), scale.shift
    upper = high * mult
    upper = upper << np.uint64(32 - shift) if shift <= 32 else upper >> np.uint64(shift - 32)
    result: UInt64s = ((low * mult) >> np.uint64(shift)) + upper
    return result


def _shifts(contents: Contents) -> tuple[list[Shift], bool]:
    """The TIME_SHIFT option: per CPU, samples of a guest's clock against its host's."""
    data = contents.option(TIME_SHIFT)
    if data is None or len(data) < 16:
        return [], False
    flags, count = struct.unpack_from(contents.order + "II", data, 8)
    position = 16
    found = []
    for _ in range(min(count, 1 << 16)):
        if position + 4 > len(data):
            return [], False
        samples = struct.unpack_from(contents.order + "I", data, position)[0]
        position += 4
        if samples > _MAX_SAMPLES or position + 24 * samples > len(data):
            return [], False
        block = np.frombuffer(data, np.dtype(contents.order + "u8"), 3 * samples, position).astype(np.uint64)
        position += 24 * samples
        time, offset, scaling = block.reshape(3, samples)
        found.append(Shift(time, offset.view(np.int64), scaling, np.zeros(samples, np.uint64)))
    return [_sorted(shift) for shift in _with_fractions(contents, data, position, found)], bool(flags & _INTERPOLATE)


def _with_fractions(contents: Contents, data: bytes, position: int, found: list[Shift]) -> list[Shift]:
    """Files since 3.0 end with the number of fraction bits of each scaling."""
    if position + 8 * sum(len(shift.time) for shift in found) > len(data):
        return found
    whole = []
    for shift in found:
        bits = np.frombuffer(data, np.dtype(contents.order + "u8"), len(shift.time), position).astype(np.uint64)
        position += 8 * len(shift.time)
        whole.append(shift._replace(fraction=np.minimum(bits, np.uint64(63))))
    return whole


def _sorted(shift: Shift) -> Shift:
    """By time, the first of each time."""
    _, first = np.unique(shift.time, return_index=True)
    return Shift(shift.time[first], shift.offset[first], shift.scaling[first], shift.fraction[first])


def _shifted(raw: UInt64s, shift: Shift, *, interpolate: bool) -> UInt64s:
    if len(shift.time) == 0:
        return raw
    if len(shift.time) == 1:
        return raw + shift.offset.view(np.uint64)[:1]
    low = np.clip(np.searchsorted(shift.time, raw, "right") - 1, 0, len(shift.time) - 2)
    correction = shift.offset[low]
    if interpolate:
        span = (shift.time[low + 1] - shift.time[low]).view(np.int64)
        way = (raw - shift.time[low]).view(np.int64) * (shift.offset[low + 1] - correction) + span // 2
        # C rounds towards zero
        correction = correction + np.where(way < 0, -(-way // span), way // span)
    result: UInt64s = ((raw * shift.scaling[low]) >> shift.fraction[low]) + correction.view(np.uint64)
    return result

"""Page frame numbers out of the ``pte`` values of migration events (MODEL.md C.3).

The architecture comes from the trace's header; what it leaves open (which of two arm64 layouts, how many page table
levels, which swap types the configuration gives to migration entries) is told by the values themselves or not at all.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.trace import Trace

Words = npt.NDArray[np.uint64]

# Swap type of a READ entry by configuration: v6.1 distribution kernels, v6.12 distribution, v7.x, v6.1 and v6.12 and
# later without CONFIG_DEVICE_PRIVATE. READ_EXCLUSIVE and WRITE follow it.
_READ_TYPES = (23, 24, 25, 27, 28)
_OFFSET_BITS = 50
_TYPE_BITS = 5
_UPPER_SINCE = (6, 12)  # arm64: the kernel from which on the type stands from bit 6 on


class Machine(NamedTuple):
    """What of a machine decides how its entries look, as its manifest has it."""

    arch: str
    page_size: int | None
    release: str | None

    @classmethod
    def of(cls, trace: Trace) -> "Machine":
        """Of the machine that was traced."""
        machine = trace.manifest["machine"]
        return cls(machine["arch"] or "", machine["page_size"], machine["release"])

    @property
    def version(self) -> tuple[int, int] | None:
        """See ``version_of``."""
        return version_of(self.release)


def version_of(release: str | None) -> tuple[int, int] | None:
    """Major and minor number of a kernel, out of what ``uname -r`` prints; None where it is not known."""
    found = re.match(r"(\d+)\.(\d+)", release or "")
    return (int(found[1]), int(found[2])) if found else None


class Layout(NamedTuple):
    """What a migration entry holds where, and which bits of a present PTE are its frame.

    Attributes:
        type_shift, offset_shift: of the swap type and of the offset; the latter stands inverted where ``inverted``.
        zero: bits that no migration entry has.
        frame_bits: of a frame number that are told; no machine has memory beyond them.
        page_shift: where it begins in a present PTE.
        young_bits: where the accessed bit of the offset may be, the dirty bit above it; by levels or width.
    """

    type_shift: int
    offset_shift: int
    inverted: bool
    zero: int
    frame_bits: int
    page_shift: int
    young_bits: tuple[int, int]

    def types(self, entries: Words) -> npt.NDArray[np.int64]:
        """int64[n]: swap types."""
        return ((entries >> np.uint64(self.type_shift)) & np.uint64((1 << _TYPE_BITS) - 1)).astype(np.int64)

    def offsets(self, entries: Words) -> Words:
        """uint64[n]: PFN, accessed and dirty bit."""
        told = ~entries if self.inverted else entries
        return (told >> np.uint64(self.offset_shift)) & np.uint64((1 << _OFFSET_BITS) - 1)

    def young_bit(self, entries: Words) -> int | None:
        """Where the accessed bit is in the offsets of ``entries``; None: none of them has either bit, or others too."""
        high = self._above_frame(entries)
        for bit in self.young_bits:
            if high and not high & ~(0b11 << (bit - self.frame_bits)):
                return bit
        return None

    def _above_frame(self, entries: Words) -> int:
        return int(np.bitwise_or.reduce(self.offsets(entries), initial=np.uint64(0))) >> self.frame_bits

    def fits(self, entries: Words) -> bool:
        """Whether all of ``entries`` can be migration entries of this layout."""
        if np.any(entries & np.uint64(self.zero)):
            return False
        if self._above_frame(entries) and self.young_bit(entries) is None:
            return False
        types = np.unique(self.types(entries)).tolist()
        return not types or any(read <= types[0] and types[-1] <= read + 2 for read in _READ_TYPES)

    def source_frames(self, entries: Words) -> Words:
        """uint64[n]: source PFN of each migration entry."""
        return self.offsets(entries) & np.uint64((1 << self.frame_bits) - 1)

    def dirty(self, entries: Words) -> npt.NDArray[np.int64]:
        """int64[n]: 1 where a migration entry carries the dirty bit; kernels with the L1TF mitigation may have none."""
        young = self.young_bit(entries)
        if young is None:
            return np.zeros(len(entries), dtype=np.int64)
        return ((self.offsets(entries) >> np.uint64(young + 1)) & np.uint64(1)).astype(np.int64)


# arch/x86/include/asm/pgtable_64.h: 34 bits of PFN with four levels, 40 with five, hold all memory below 64 TiB; what
# a present PTE has above is the encryption bit of AMD
_X86 = Layout(59, 9, inverted=True, zero=0x101, frame_bits=34, page_shift=12, young_bits=(34, 40))


def _arm64(page_shift: int, *, upper: bool) -> Layout:
    """arch/arm64/include/asm/pgtable.h, up to v6.11 and, ``upper``, since v6.12; 48 or 52 address bits (C.3)."""
    frame_bits = 48 - page_shift
    young_bits = (frame_bits, frame_bits + 4)
    if upper:
        return Layout(6, 12, False, 0b11 | 1 << 11 | 0b11 << 62, frame_bits, page_shift, young_bits)
    return Layout(3, 8, False, 0b11 | 0b111111 << 58, frame_bits, page_shift, young_bits)


def layout_of(
    entries: Words, arch: str | None, page_size: int | None = None, release: str | None = None
) -> Layout | None:
    """The layout of the migration entries of one trace; None where none fits, or more than one.

    Args:
        entries: all that it has, or many.
        arch: as ``uname -m`` prints it.
        page_size: bytes; None: not known, and only x86-64, which has one, is understood.
        release: of the kernel, which tells where the entries fit both layouts of arm64, as those of one type may.
    """
    if arch == "x86_64":
        layouts = [_X86]
    elif arch in ("aarch64", "arm64") and page_size in (4096, 16384, 65536):
        layouts = [_arm64(page_size.bit_length() - 1, upper=upper) for upper in (False, True)]
    else:
        return None
    fit = [layout for layout in layouts if layout.fits(entries)]
    version = version_of(release)
    if len(fit) == 2 and version and len(entries):
        return fit[version >= _UPPER_SINCE]
    return fit[0] if len(fit) == 1 else None


def migration_entry_pfn(
    entries: Words, arch: str, page_size: int | None = None, release: str | None = None
) -> Words | None:
    """uint64[n]: source PFN of each migration entry; None where their layout is not told."""
    layout = layout_of(entries, arch, page_size, release)
    return None if layout is None else layout.source_frames(entries)


def present_pfn(ptes: Words, arch: str, page_size: int | None = None) -> Words | None:
    """uint64[n]: PFN of each present PTE; None for an architecture that is not decoded.

    An x86-64 PROT_NONE entry (present 0, bit 8 set) has its frame bits inverted (__pte_needs_invert, against L1TF).
    """
    if arch == "x86_64":
        inverted = (ptes & np.uint64(0x101)) == np.uint64(0x100)
        ptes = np.where(inverted, ~ptes, ptes)
        frame_bits, page_shift = _X86.frame_bits, _X86.page_shift
    elif arch in ("aarch64", "arm64") and page_size in (4096, 16384, 65536):
        page_shift = page_size.bit_length() - 1
        frame_bits = 48 - page_shift
    else:
        return None
    return (ptes >> np.uint64(page_shift)) & np.uint64((1 << frame_bits) - 1)


def read_entry_type(seen: list[int]) -> int | None:
    """The swap type of a READ migration entry, from the types ``seen`` in a trace; None where several would fit."""
    fit = [read for read in _READ_TYPES if all(read <= one <= read + 2 for one in seen)]
    if seen and max(seen) - min(seen) == 2 and min(seen) not in fit:
        return min(seen)
    return fit[0] if seen and len(fit) == 1 else None

"""Page frame numbers out of the ``pte`` values of migration events (MODEL.md C.3)."""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_PRESENT, _PROTNONE = np.uint64(1 << 0), np.uint64(1 << 8)
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)


def migration_entry_pfn(pte: Words, arch: str) -> Words | None:
    """uint64[n]: source PFN of each x86-64 migration entry; None for an architecture not decoded yet.

    arch/x86/include/asm/pgtable_64.h: the offset stands inverted in bits 9..58. Above the PFN come the A and D bits,
    at 34 with four page table levels and at 40 with five; 34 bits hold every PFN below 64 TiB under both.
    """
    if arch != "x86_64":
        return None
    return ((~pte << np.uint64(5)) >> np.uint64(14)) & np.uint64((1 << 34) - 1)


def migration_entry_type(pte: Words) -> npt.NDArray[np.int64]:
    """int64[n]: swap type of each x86-64 migration entry: the top five bits, whose meaning depends on the kernel."""
    return (pte >> np.uint64(59)).astype(np.int64)


def migration_entry_dirty(pte: Words) -> npt.NDArray[np.int64]:
    """int64[n]: 1 where an x86-64 migration entry carries the dirty bit: bit 35 of the offset, with four levels."""
    offset = (~pte << np.uint64(5)) >> np.uint64(14)
    return ((offset >> np.uint64(35)) & np.uint64(1)).astype(np.int64)


def present_pfn(pte: Words, arch: str) -> Words | None:
    """uint64[n]: PFN of each x86-64 present PTE; None for an architecture not decoded yet.

    A PROT_NONE entry (present 0, bit 8 set) has its frame bits inverted (__pte_needs_invert, the L1TF mitigation).
    """
    if arch != "x86_64":
        return None
    inverted = ((pte & _PRESENT) == 0) & ((pte & _PROTNONE) != 0)
    return (np.where(inverted, ~pte, pte) & _FRAME) >> np.uint64(12)


# READ by configuration (MODEL.md C.3): v6.1 distribution kernels, v6.12 distribution, v7.x, v6.1 and v6.12 and later
# without CONFIG_DEVICE_PRIVATE. READ_EXCLUSIVE and WRITE follow it.
_READ_TYPES = (23, 24, 25, 27, 28)


def read_entry_type(seen: list[int]) -> int | None:
    """The swap type of a READ migration entry, from the types ``seen`` in a trace; None where several would fit."""
    fit = [read for read in _READ_TYPES if all(read <= one <= read + 2 for one in seen)]
    if seen and max(seen) - min(seen) == 2 and min(seen) not in fit:
        return min(seen)
    return fit[0] if seen and len(fit) == 1 else None

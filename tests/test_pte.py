"""What migration entries and PTEs say, against MODEL.md C.3: its live values, and its bit layouts written out again."""

import numpy as np
import pytest

from tracekit.machine import pte

X86 = [0xF7FFE7FFDFC7C000, 0xE7FFE7FFDFC6E200, 0xE7FFEFFFDFC6E200]
READ_TYPES = [23, 24, 25, 27, 28]


def words(*values):
    return np.array(values, dtype=np.uint64)


def arm64(upper, kind, pfn, *, young=0, dirty=0, width=36, uffd=0):
    """C.3: bits 3-7 and 8-57, or bits 6-10 and 12-61; the PFN bits, then A, then D."""
    offset = pfn | young << width | dirty << (width + 1)
    return (kind << 6 | offset << 12 | uffd << 3) if upper else (kind << 3 | offset << 8)


def test_live_values_of_x86():
    layout = pte.layout_of(words(*X86), "x86_64")
    assert layout.types(words(*X86)).tolist() == [30, 28, 28]
    assert layout.source_frames(words(*X86)).tolist() == [0x101C1F, 0x101C8E, 0x101C8E]
    assert layout.dirty(words(*X86)).tolist() == [1, 1, 1]
    assert layout.young_bit(words(*X86)) == 34
    # a read-only dirty PTE (bit 58), and a PROT_NONE one, whose frame stands inverted
    protnone = (~(0x299406 << 12)) & 0x000FFFFFFFFFF000 | 0x100
    assert pte.present_pfn(words(0x8400000299406025, protnone), "x86_64").tolist() == [0x299406] * 2


def test_five_levels_of_x86_move_the_bits():
    offsets = [0x1234 | 1 << 40, 0x99 | 1 << 40 | 1 << 41]
    entries = words(*[30 << 59 | (~(offset << 9) & ((1 << 59) - 1) & ~0x1FF) for offset in offsets])
    layout = pte.layout_of(entries, "x86_64")
    assert layout.source_frames(entries).tolist() == [0x1234, 0x99]
    assert layout.dirty(entries).tolist() == [0, 1]


def test_against_l1tf_there_may_be_no_accessed_and_dirty_bits():
    entries = words(30 << 59 | (~(0x1234 << 9) & ((1 << 59) - 1) & ~0x1FF))
    layout = pte.layout_of(entries, "x86_64")
    assert (layout.young_bit(entries), layout.dirty(entries).tolist()) == (None, [0])


def test_what_no_layout_explains_is_refused():
    """Bits above the frame that neither four nor five levels put there; a type that no configuration gives."""
    both = [30 << 59 | (~((1 << bit) << 9) & ((1 << 59) - 1) & ~0x1FF) for bit in (34, 40)]
    assert pte.layout_of(words(*both), "x86_64") is None
    assert pte.layout_of(words(5 << 59 | 0x1FFFE00), "x86_64") is None
    assert pte.layout_of(words(X86[0] | 1), "x86_64") is None, "present"
    assert pte.migration_entry_pfn(words(*both), "x86_64") is None


def test_the_encryption_bit_of_amd_is_no_part_of_the_frame():
    assert (
        pte.present_pfn(words(1 << 51 | 0x1234 << 12 | 0x867, 1 << 47 | 0x1234 << 12 | 0x867), "x86_64").tolist()
        == [0x1234] * 2
    )


@pytest.mark.parametrize("upper", [False, True], ids=["6.1", "6.12"])
@pytest.mark.parametrize("read", READ_TYPES)
@pytest.mark.parametrize(("page_size", "width"), [(4096, 36), (4096, 40), (16384, 34), (65536, 32), (65536, 36)])
def test_arm64_has_two_layouts_which_the_values_tell_apart(upper, read, page_size, width):
    frames = [0x88001, 0x8800E, 0x123458, 0x9FFFF]
    how = [(read + i % 3, pfn, i % 2, i // 2) for i, pfn in enumerate(frames)]
    entries = words(
        *(arm64(upper, kind, pfn, young=young, dirty=dirty, width=width) for kind, pfn, young, dirty in how)
    )
    layout = pte.layout_of(entries, "aarch64", page_size)
    assert layout is not None
    assert layout.types(entries).tolist() == [kind for kind, *_ in how]
    assert layout.source_frames(entries).tolist() == frames
    assert layout.dirty(entries).tolist() == [dirty for *_, dirty in how]


def test_arm64_entries_that_both_layouts_fit_are_not_decoded():
    one = arm64(True, 27, 0x88000 << 1)
    assert [layout.fits(words(one)) for layout in (pte._arm64(12, upper=False), pte._arm64(12, upper=True))] == [
        True
    ] * 2
    assert pte.layout_of(words(one), "aarch64", 4096) is None
    for release, upper in (("6.11.9", False), ("6.12.0-rc1", True), ("7.2.13+deb14-cloud-arm64", True)):
        assert pte.layout_of(words(one), "aarch64", 4096, release) == pte._arm64(12, upper=upper)
    assert pte.layout_of(words(), "aarch64", 4096, "7.2") is None, "nothing to decode"
    assert pte.layout_of(words(), "aarch64") is None, "nothing tells"


@pytest.mark.parametrize(("page_size", "shift"), [(4096, 12), (16384, 14), (65536, 16)])
def test_arm64_present(page_size, shift):
    """Bits 47 down; shareability, AF, nG, write, contiguous and software bits around them are none of it."""
    around = 1 << 0 | 0b11 << 8 | 1 << 10 | 1 << 11 | 1 << 51 | 1 << 52 | 1 << 55 | 1 << 58
    assert pte.present_pfn(words(0x12345 << shift | around), "aarch64", page_size).tolist() == [0x12345]
    # PRESENT_INVALID: VALID clear, nG set
    assert pte.present_pfn(words(0x12345 << shift | 1 << 11), "aarch64", page_size).tolist() == [0x12345]


@pytest.mark.parametrize(("arch", "page_size"), [("riscv64", 4096), ("aarch64", None), ("aarch64", 8192), ("", 4096)])
def test_other_machines_are_not_guessed_at(arch, page_size):
    entries = words(*X86)
    assert pte.layout_of(entries, arch, page_size) is None
    assert pte.present_pfn(entries, arch, page_size) is None


@pytest.mark.parametrize("read", READ_TYPES)
def test_the_types_of_a_trace_tell_the_configuration(read):
    assert pte.read_entry_type([read, read + 1, read + 2]) == read
    assert pte.read_entry_type([]) is None


def test_types_that_several_configurations_have_tell_nothing():
    assert pte.read_entry_type([25]) is None

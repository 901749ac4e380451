"""Event formats and print fmts, as kernels write them."""

import re

import numpy as np
import pytest
from oracle import CAPTURES
from synthetic import Event

from tracekit.formats._event_format import FormatTextError, parse_format
from tracekit.formats._event_rows import EventRows, Raws, Rows
from tracekit.formats._print_fmt import namers


def _decode(event: Event, *raws: bytes) -> dict[str, list]:
    rows = EventRows(parse_format(event.system, event.text))
    size = max(map(len, raws))
    width = -(-max(size, rows.row_bytes) // 8) * 8
    data = np.frombuffer(b"".join(raw.ljust(width, b"\0") for raw in raws), np.uint8)
    at = np.arange(len(raws)) * width
    counted: dict[str, int] = {}
    columns = rows.arrays(
        rows.extract(Rows(data.reshape(len(raws), width), 0)),
        Raws(data, at, np.array([len(raw) for raw in raws])),
        counted.__setitem__,
    )
    assert [(name, array.type) for name, array in columns] == rows.types  # what a table without a row has
    return {name: array.to_pylist() for name, array in columns} | ({"anomalies": counted} if counted else {})


COMMON = bytes([77, 0, 1, 2, 5, 0, 0, 0])


def test_integers_keep_size_and_sign():
    event = Event(1, "s", "e", (
        ("int a", 8, 4, 1), ("unsigned int b", 12, 4, 0), ("s8 c", 16, 1, 1), ("bool d", 17, 1, 0),
        ("short e", 18, 2, 1), ("void * f", 24, 8, 0), ("unsigned long g", 32, 8, 0), ("long h", 40, 8, 1),
    ))  # fmt: skip
    raw = COMMON + b"\xff" * 40
    assert _decode(event, raw) == {
        "common_flags": [1], "common_preempt_count": [2], "common_pid": [5],
        "a": [-1], "b": [(1 << 32) - 1], "c": [-1], "d": [255], "e": [-1],
        "f": [(1 << 64) - 1], "g": [(1 << 64) - 1], "h": [-1],
    }  # fmt: skip


def test_a_field_named_like_a_common_column_is_prefixed():
    event = Event(1, "s", "e", (("char comm[8]", 8, 8, 0), ("pid_t pid", 16, 4, 1), ("int field_pid", 20, 4, 1)))
    row = _decode(event, COMMON + b"ab\0cdefg" + bytes([7, 0, 0, 0, 8, 0, 0, 0]))
    assert row["field_comm"] == ["ab"]
    assert row["field_pid"] == [7]
    assert row["field_field_pid"] == [8]


def test_arrays_become_lists_and_structs_bytes():
    event = Event(1, "s", "e", (
        ("unsigned long args[2]", 8, 16, 0), ("u8 mac[6]", 24, 6, 0), ("struct odd o", 30, 3, 0),
        ("int n[2][2]", 36, 16, 1),
    ))  # fmt: skip
    raw = COMMON + bytes([1, *[0] * 7, 2, *[0] * 7]) + b"abcdef" + b"xyz" + bytes(3) + b"\xff" * 16
    row = _decode(event, raw)
    assert row["args"] == [[1, 2]]
    assert row["mac"] == [list(b"abcdef")]
    assert row["o"] == [b"xyz"]
    assert row["n"] == [[-1, -1, -1, -1]]


def test_dynamic_fields():
    event = Event(1, "s", "e", (
        ("__data_loc char[] name", 8, 4, 0), ("__rel_loc char[] rel", 12, 4, 0), ("__data_loc int[] list", 16, 4, 1),
    ))  # fmt: skip
    fixed = 20

    def loc(length: int, offset: int) -> bytes:
        return (length << 16 | offset).to_bytes(4, "little")

    raw = (
        COMMON + loc(4, fixed) + loc(3, fixed + 4 - 16) + loc(8, fixed + 8) + b"abc\0" + b"de\0\0" + b"\1\0\0\0\2\0\0\0"
    )
    row = _decode(event, raw, COMMON + loc(4, 5000) + loc(0, 0) + loc(0, 0) + bytes(16))
    assert row["name"] == ["abc", None]
    assert row["rel"] == ["de", ""]
    assert row["list"] == [[1, 2], []]
    assert row["anomalies"] == {"dynamic_field_outside_record": 1}


def test_text_that_is_no_utf8_is_replaced_row_by_row():
    event = Event(1, "s", "e", (("char comm[4]", 8, 4, 0),))
    raws = (COMMON + b"ab\0\0", COMMON + b"\xff\xc3\0\0", COMMON + "é".encode() + b"z\0")
    assert _decode(event, *raws)["field_comm"] == [
        "ab", "\ufffd\ufffd", "éz",
    ]  # fmt: skip


def test_names_of_values():
    event = Event(1, "s", "e", (("int m", 8, 4, 1), ("u32 f", 12, 4, 0)),
        '"m=%s f=%s", __print_symbolic(REC->m, {0, "ZERO"}, {-1, "MINUS"}),'
        ' (REC->f) ? __print_flags((unsigned long)REC->f, "|", {(1UL << 3) | 1, "NINE"}, {0x8, "EIGHT"}, {1, "ONE"})'
        ' : "none"',
    )  # fmt: skip
    rows = _decode(event, *(COMMON + m.to_bytes(4, "little", signed=True) + f.to_bytes(4, "little") for m, f in
        ((0, 0), (-1, 9), (5, 8), (0, 17))))  # fmt: skip
    assert rows["m_name"] == ["ZERO", "MINUS", "0x5", "ZERO"]
    assert rows["f_name"] == ["none", "NINE", "EIGHT", "ONE|0x10"]


@pytest.mark.parametrize("text", [
    '"%s", __print_symbolic(REC->a + REC->b, {0, "X"})',
    '"%s", __print_symbolic(REC->a, {UNKNOWN_CONSTANT, "X"})',
    '"%s", __print_flags(REC->a, "|"',
    '"%s", call(__print_symbolic(REC->a, {0, "X"}))',
    '"%s", ' + "(" * 5000 + '__print_symbolic(REC->a, {0, "X"})',
])  # fmt: skip
def test_what_is_not_understood_gets_no_names(text):
    assert namers(text) == []


@pytest.mark.parametrize(
    "text", ["", "name: x", "name: x\nID: y\n", "name: x\nID: 1\n\tfield:[4];\toffset:0;\tsize:4;"]
)
def test_what_is_no_format_is_refused(text):
    with pytest.raises(FormatTextError):
        parse_format("s", text)


def test_a_field_beyond_any_record_is_refused():
    with pytest.raises(FormatTextError, match="ends at"):
        parse_format("s", Event(1, "s", "e", (("int a", 1 << 40, 4, 1),)).text)


@pytest.mark.parametrize("kind", ["__data_loc char[]", "__rel_loc u32[]"])
def test_a_place_in_less_than_four_bytes_is_refused(kind):
    """Found by changing formats at random: four bytes were read from behind the event."""
    with pytest.raises(FormatTextError, match="3 bytes"):
        parse_format("s", Event(1, "s", "e", ((f"{kind} a", 8, 3, 0),)).text)
    assert parse_format("s", Event(1, "s", "e", ((f"{kind} a", 8, 16, 0),)).text).fields[0].dynamic


def test_all_formats_at_hand_parse_and_nearly_all_names_are_found():
    paths = sorted((CAPTURES / "formats").glob("*/*/*/format"))
    if not paths:
        pytest.skip(f"no captures at {CAPTURES}")
    missing = set()
    for path in paths:
        event = parse_format(path.parts[-3], path.read_text())
        assert len(event.fields) == path.read_text().split("print fmt")[0].count("field:") - 4
        assert event.fixed_size > 0
        wanted = len(re.findall("__print_(?:symbolic|flags)", event.print_fmt))
        if len(namers(event.print_fmt)) < wanted:
            missing.add(event.name)
    assert missing <= {"mm_vmscan_throttled"}  # its numbers are names of constants

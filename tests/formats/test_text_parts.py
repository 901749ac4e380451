"""The steps that work on many lines at once, against Python that works on one; and the formats that ship."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.formats._event_format import parse_format
from tracekit.formats._text_bytes import Text, Vocabulary
from tracekit.formats._text_chains import frame
from tracekit.formats._text_columns import NameTable, fit
from tracekit.formats._text_generic import learn
from tracekit.formats._text_known import shapes, systems
from tracekit.formats._text_lines import _flags
from tracekit.formats._text_match import Template, number_at
from tracekit.formats._text_print import Piece, constant, literal, pieces_of

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT.parent / "shared" / "captures"
FORMATS = sorted((ROOT / "schemas" / "formats").glob("*/*.format"))
NUMBERS = st.integers(0, (1 << 64) - 1) | st.integers(0, 9999)
WORDS = st.text(alphabet="abcxyzABCXYZ0189_.", min_size=1, max_size=90)
JUNK = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"?"))


def text_of(lines: list[bytes]) -> tuple[Text, np.ndarray, np.ndarray]:
    text = Text(b"".join(line + b"\n" for line in lines), 1000)
    return text, *text.lines()


@given(st.lists(NUMBERS, min_size=1, max_size=50), JUNK)
def test_numbers(numbers: list[int], junk: bytes) -> None:
    text, starts, _ = text_of([b"%d,%x," % (number, number) + junk for number in numbers])
    decimals, length = text.decimal(starts)
    assert decimals.tolist() == numbers
    assert length.tolist() == [len(str(number)) for number in numbers]
    hexadecimals, length = text.hexadecimal(starts + length + 1)
    assert hexadecimals.tolist() == numbers
    assert length.tolist() == [len(f"{number:x}") for number in numbers]


@given(st.lists(st.integers(-(1 << 63), (1 << 64) + 1000), min_size=1, max_size=30))
def test_numbers_that_do_not_fit_are_none(numbers: list[int]) -> None:
    text, starts, ends = text_of([b"%d" % number for number in numbers])
    value, good = number_at(text, starts, "decimal")
    assert good.tolist() == [number < 1 << 64 for number in numbers]
    kept = [number & ((1 << 64) - 1) for number, fits in zip(numbers, good.tolist(), strict=True) if fits]
    assert value.number[good].tolist() == kept
    assert (value.ends[good] == ends[good]).all()


@given(st.lists(WORDS, min_size=1, max_size=40), st.sampled_from([b" ", b":", b"(", b"\xff", b"-", b"\0"]))
def test_words_and_places(words: list[str], end: bytes) -> None:
    text, starts, ends = text_of([b"   " + word.encode() + end + b"rest" for word in words])
    begin = text.skip_spaces(starts)
    assert (begin == starts + 3).all()
    stop = text.word_end(begin)
    assert [text.raw[a:b].decode() for a, b in zip(begin, stop, strict=True)] == words
    assert (text.find(begin, end[0], ends) == stop).all()
    assert text.equals(stop, end + b"rest").all()
    distinct = Vocabulary().codes(text, begin, stop)
    assert [distinct.values[code].decode() for code in distinct.codes.tolist()] == words


def test_strings_that_begin_alike_stay_apart() -> None:
    values = [b"a" * 64 + bytes([65 + n % 3]) for n in range(30)] + [b"a" * n for n in range(70)]
    text, starts, ends = text_of(values)
    words = Vocabulary()
    for _ in range(2):
        distinct = words.codes(text, starts, ends)
        assert [distinct.values[code] for code in distinct.codes.tolist()] == values


def test_many_strings_are_learnt_at_once() -> None:
    """100,000 names one by one took 5 s: each moved all that were there."""
    words = Vocabulary()
    for numbers in (range(0, 20_000, 2), range(30_000), range(100_000)):
        values = [b"name-%d" % number for number in numbers]
        text, starts, ends = text_of(values)
        distinct = words.codes(text, starts, ends)
        assert [distinct.values[code] for code in distinct.codes.tolist()] == values
        assert len(set(distinct.values)) == len(distinct.values)


@given(st.lists(st.tuples(JUNK, st.integers(-(1 << 63), (1 << 63) - 1), JUNK), min_size=1, max_size=20))
def test_a_template_agrees_with_its_regular_expression(rows: list[tuple[bytes, int, bytes]]) -> None:
    template = Template(
        [
            literal("x="),
            Piece("string", "x"),
            literal(" y="),
            Piece("decimal", "y"),
            literal(" z="),
            Piece("string", "z"),
        ]
    )
    lines = [b"x=%b y=%d z=%b" % row for row in rows] + [b"x=%b y=%d" % row[:2] for row in rows]
    text, starts, ends = text_of(lines)
    fits, values = template.match(text, starts, ends)
    pattern = re.compile(rb"x=(.*?) y=(-?\d{1,20}) z=(.*?) *", re.DOTALL)
    for number, line in enumerate(line.rstrip(b" \r").replace(b"\r\n", b"\n") for line in lines):
        found = pattern.fullmatch(line)
        assert fits[number] == (found is not None)
        if found is not None:
            spans = [text.raw[value.starts[number] : value.ends[number]] for value in values]
            assert spans == list(found.groups())
            assert values[1].number[number] == int(found[2]) & ((1 << 64) - 1)


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]))
def test_a_field_takes_what_it_can_hold(number: int, kind: str) -> None:
    dtype = np.dtype(kind)
    narrow, good = fit(np.array([number & ((1 << 64) - 1)], np.uint64), dtype)
    bits = 8 * dtype.itemsize
    same = number & ((1 << 64) - 1)
    extended = same in {
        same & ((1 << bits) - 1),
        (same | -1 << bits) & ((1 << 64) - 1) if same >> (bits - 1) & 1 else -1,
    }
    assert bool(good[0]) == extended
    if extended:
        assert int(narrow[0]) & ((1 << bits) - 1) == same & ((1 << bits) - 1)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0x10", 16),
        ("(unsigned long)(((gfp_t)((((1UL))) << (3))) | 0x400u)", 0x408),
        ("~0", (1 << 64) - 1),
        ("-1", (1 << 64) - 1),
        ("NAME", None),
        ("1 <<", None),
        ("f(1)", None),
    ],
)
def test_constants(expression: str, value: int | None) -> None:
    assert constant(expression) == value


def test_names_with_two_meanings_have_no_number() -> None:
    names = NameTable([(("a", 1), ("b", 2)), (("a", 1), ("b", 3), ("", 0))], flags=True)
    assert [names.number(text) for text in ("a", "b", "a|0x10", "a|b", "", "0x8", "c", "7")] == [
        1,
        None,
        17,
        None,
        0,
        8,
        None,
        7,
    ]


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_format_is_understood(path: Path) -> None:
    event = parse_format(path.parent.name, path.read_text())
    assert path.name.split(".", 1)[0] == event.name
    assert path.parent.name in systems(event.name)
    pieces = pieces_of(event)
    assert pieces is not None
    assert {piece.field for piece in pieces if piece.field} <= {field.name for field in (*event.common, *event.fields)}
    for piece in pieces:
        assert piece.kind not in {"name", "flags"} or len(piece.names) > 0
    assert shapes(path.parent.name, event.name, "event")


def test_shipped_formats_are_the_kernels_own() -> None:
    if not CAPTURES.is_dir():
        pytest.skip("needs the captures beside the checkout")
    for path in FORMATS:
        version = path.name.split(".", 1)[1].removesuffix(".format")
        (source,) = (CAPTURES / "formats").glob(f"{version}.*/{path.parent.name}/{path.name.split('.')[0]}/format")
        assert re.sub(r"^ID: \d+$", "ID: 0", source.read_text(), flags=re.MULTILINE) == path.read_text()
    assert sum(path.stat().st_size for path in FORMATS) < 400_000


@pytest.mark.parametrize(
    ("line", "keys", "whole"),
    [
        (b"(ffffffff817a3654) folio=0xffff vma=0x1 n=-3", ("__probe_ip", "folio", "vma", "n"), True),
        (b"(ffffffff8172ae44 <- ffffffff8172b1f6) ret=0x1", ("__probe_func", "__probe_ret_ip", "ret"), True),
        (b'(f+0x4/0x1 <- g) s="a b"', ("__probe_func_name", "__probe_ret_ip_name", "s"), True),
        (b"a=1, b=0x2 c=x y z", ("a", "b", "c"), True),
        (b"nid: 0 objects to shrink 2", ("nid",), False),
        (b"a=1 a=2 time_ns=3", ("a", "a_", "time_ns"), True),
        (b"x=0x38 (56) y=abc", ("x", "", "y"), True),
    ],
)
def test_what_a_line_teaches(line: bytes, keys: tuple[str, ...], *, whole: bool) -> None:
    shape = learn(line, return_address_first=False)
    assert shape is not None
    assert shape.keys == keys
    assert shape.whole == whole


def test_lines_without_keys_teach_nothing() -> None:
    assert learn(b"nothing to see", return_address_first=False) is None
    assert learn(b"a=\xff", return_address_first=False) is None


@pytest.mark.parametrize(
    ("shown", "flags", "preempt"),
    [
        (".....", 0, 0),
        ("d..1.", 1, 1),
        ("dnh2.", 0x0D, 2),
        ("bNs.1", 0xB4, 0x10),
        ("Dlz.2", 0xC3, 0x20),
        ("....", 0, 0),
        ("?....", -1, -1),
    ],
)
def test_flags(shown: str, flags: int, preempt: int) -> None:
    text, starts, ends = text_of([shown.encode() + b" 1.000000: "])
    found = _flags(text, starts, ends)
    assert (int(found[0][0]), int(found[1][0])) == (flags, preempt)
    assert text.raw[int(found[2][0]) :].startswith(b"1.000000")


@pytest.mark.parametrize(
    ("line", "ip", "symbol"),
    [
        (b" => try_to_migrate_one", None, "try_to_migrate_one"),
        (b" => rss_stat+0x10a/0x1a0 <ffffffff816e9b6a>", 0xFFFFFFFF816E9B6A, "rss_stat+0x10a/0x1a0"),
        (b" =>  <00007f166d90be34>", 0x7F166D90BE34, None),
        (b"=> unlink_anon_vmas (ffffffff8172ab95)", 0xFFFFFFFF8172AB95, "unlink_anon_vmas"),
        (b"\tffffffff8172ab95 f+0x5 ([kernel.kallsyms])", 0xFFFFFFFF8172AB95, "f+0x5"),
        (
            b"\t    7f00deadbeef operator new(unsigned long) (/usr/lib/libc.so.6)",
            0x7F00DEADBEEF,
            "operator new(unsigned long)",
        ),
        (b"\t    7f00deadbeef [unknown] (/bin/b)", 0x7F00DEADBEEF, "[unknown]"),
        (b"\tffffffff8172ab95", 0xFFFFFFFF8172AB95, None),
        (b"\tsomething else", None, "something else"),
    ],
)
def test_a_stack_entry(line: bytes, ip: int | None, symbol: str | None) -> None:
    assert frame(line) == (ip, symbol)

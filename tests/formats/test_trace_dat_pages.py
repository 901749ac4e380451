"""The lockstep decoder against the plain one: pages made by an encoder, then pages with damage."""

import numpy as np
import pytest
import ring_buffer_naive as naive
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.formats._ring_buffer import PageLayout, decode_pages, sizes

_DELTAS = st.integers(0, (1 << 27) - 1)
_WIDE = st.one_of(st.integers(0, 1 << 40), st.integers(0, (1 << 59) - 1))
_PAYLOADS = st.one_of(st.integers(2, 30), st.integers(1, 200)).flatmap(
    lambda words: st.binary(min_size=4 * words, max_size=4 * words)
)
_ITEMS = st.lists(
    st.one_of(
        st.builds(naive.Data, _DELTAS, _PAYLOADS, st.booleans()),
        st.builds(naive.Padding, st.integers(1, (1 << 27) - 1), _PAYLOADS),
        st.builds(naive.Extend, _WIDE),
        st.builds(naive.Stamp, _WIDE),
    ),
    max_size=40,
)
_LAYOUTS = st.builds(naive.Layout, st.sampled_from([1024, 4096, 65536]), st.sampled_from([4, 8]), st.sampled_from("<>"))
_STAMPS = st.one_of(st.integers(0, 1 << 50), st.integers(0, (1 << 64) - 1))
_MISSED = st.one_of(st.none(), st.just(-1), st.integers(0, (1 << 32) - 1))
_PAGES = st.lists(st.tuples(_STAMPS, _ITEMS, _MISSED, st.sampled_from([b"\0", b"\xff", b"\x5d\1"])), max_size=6)


def _both(layout, data):
    array = np.frombuffer(data, np.uint8)
    return decode_pages(array, PageLayout(layout.page_bytes, layout.long_bytes, layout.order == ">")), naive.decode(
        layout, data
    )


def _sizes(layout, data, events):
    return sizes(np.frombuffer(data, f"{layout.order}u4"), events.place, events.length).tolist()


@settings(max_examples=300, deadline=None)
@given(_LAYOUTS, _PAGES)
def test_both_decoders_agree(layout, pages):
    data = b"".join(naive.page(layout, *parts) for parts in pages)
    fast, (events, missed) = _both(layout, data)
    assert fast.problems.keys() <= {"event_too_short"}
    assert (4 * fast.place).tolist() == [event.at for event in events]
    assert _sizes(layout, data, fast) == [len(event.payload) for event in events]
    assert fast.page.tolist() == [event.page for event in events]
    assert fast.stamp.tolist() == [event.stamp for event in events]
    assert fast.missed.tolist() == missed


@pytest.mark.parametrize("words", range(29))
def test_every_type_len(words):
    layout = naive.Layout(4096, 8, "<")
    payload = bytes(range(4 * words)) if words else bytes(400)
    data = naive.page(layout, 1000, [naive.Data(5, payload), naive.Data(7, bytes(8))])
    fast, (events, _) = _both(layout, data)
    assert fast.stamp.tolist() == [event.stamp for event in events]
    assert fast.stamp.tolist()[-1] == 1012
    assert _sizes(layout, data, fast) == ([4 * words or 400] if words != 1 else []) + [8]


def test_events_lost_without_room_for_their_number():
    layout = naive.Layout(4096, 8, "<")
    full = [naive.Data(1, bytes(100))] * 39 + [naive.Data(1, bytes(20))]
    data = naive.page(layout, 0, full, missed=17)
    assert _both(layout, data)[0].missed.tolist() == [-1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_damaged_pages_end_where_they_are_damaged(count, random):
    layout = naive.Layout(1024, 8, "<")
    data = bytearray(random.randbytes(count * layout.page_bytes))
    for page in range(count):  # a commit that is possible, else nothing of the page is read
        data[page * 1024 + 8 : page * 1024 + 16] = (random.randrange(252) * 4).to_bytes(8, "little")
    fast = decode_pages(np.frombuffer(bytes(data), np.uint8), PageLayout(1024, 8, big_endian=False))
    at, size = 4 * fast.place, np.array(_sizes(layout, bytes(data), fast), np.int64)
    page = at // 1024
    assert (page == fast.page).all()
    assert ((at + size - 1) // 1024 == page).all()
    assert (np.diff(at)[np.diff(page) == 0] > 0).all()


def test_a_page_with_an_impossible_commit_is_counted():
    data = naive.page(naive.Layout(1024, 8, "<"), 5, [naive.Data(1, bytes(8))])
    broken = data[:8] + (5000).to_bytes(8, "little") + data[16:]
    fast = decode_pages(np.frombuffer(data + broken, np.uint8), PageLayout(1024, 8, big_endian=False))
    assert fast.problems == {"damaged_page": 1}
    assert fast.stamp.tolist() == [6]

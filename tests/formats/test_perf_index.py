"""The quick way to find records gives what the plain one gives."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import regular_captures

from tracekit.formats import _perf_index as index
from tracekit.formats._perf_index import Chain, SamplePattern, hop, link

PATTERN = SamplePattern(4, 1, 10, 20)


def _words(data: bytes) -> np.ndarray:
    return np.frombuffer(data + bytes(-len(data) % 8) + bytes(64), np.uint64)


def _header(kind: int, size: int, misc: int = 0) -> int:
    return kind | misc << 32 | size << 48


def _same(quick: Chain, plain: Chain) -> bool:
    columns = zip(quick.found, plain.found, strict=True)
    return all(np.array_equal(mine, its) for mine, its in columns) and quick[1:] == plain[1:]


ids = st.integers(8, 22)
payload_words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(_header, st.sampled_from([9, 68]), st.sampled_from([8, 16, 32, 40, 64])),  # looks like a header
    ids,
)
samples = st.builds(
    lambda number, payload: struct.pack(f"<Q{len(payload) + 1}Q", _header(9, 16 + 8 * len(payload)), number, *payload),
    ids,
    st.lists(payload_words, min_size=0, max_size=8),
)
others = st.builds(
    lambda kind, payload: struct.pack(f"<{len(payload) + 1}Q", _header(kind, 8 + 8 * len(payload)), *payload),
    st.sampled_from([1, 3, 7, 68, 79, 71, 66, 200]),
    st.lists(payload_words, max_size=4),
)
bad = st.binary(min_size=8, max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(samples, samples, samples, others), max_size=40),
    st.one_of(st.just(b""), bad),
    st.integers(0, 80),
)
def test_link_equals_hop(records, rubbish, cut):
    data = b"".join(records) + rubbish
    data = data[: len(data) - cut] if cut < len(data) else data
    words = _words(data)
    end = len(data) // 8
    quick, plain = link(words, 0, end, PATTERN), hop(words, 0, end)
    assert _same(quick, plain)


def test_link_equals_hop_across_chunks(monkeypatch):
    monkeypatch.setattr(index, "CHUNK_WORDS", 16)
    data = b"".join(struct.pack("<6Q", _header(9, 48), 10 + n % 10, 9, 68, n, _header(9, 48)) for n in range(100))
    words = _words(data)
    quick = link(words, 0, len(data) // 8, PATTERN)
    assert quick.starts.tolist() == list(range(0, 600, 6))


def test_damage_is_named_and_stops():
    words = _words(struct.pack("<4QQ", _header(9, 32), 11, 0, 0, _header(9, 12)))
    for chain in (link(words, 0, 5, PATTERN), hop(words, 0, 5)):
        assert chain.starts.tolist() == [0]
        assert chain.stop == 4
        assert "12 bytes" in chain.problem


@pytest.mark.parametrize("folder", regular_captures()[::5], ids=lambda folder: folder.name)
def test_link_equals_hop_on_captures(folder):
    data = (folder / "perf.data").read_bytes()
    offset, size = struct.unpack_from("<QQ", data, 40)
    words = _words(data[offset : offset + size])
    quick, plain = link(words, 0, size // 8, SamplePattern(4, 1, 1, 1 << 20)), hop(words, 0, size // 8)
    assert _same(quick, plain)

"""Pieces of a buffer put end to end, by whichever way is the shorter, against slices of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracekit import _columns

LENGTHS = st.lists(st.integers(0, 9), max_size=40) | st.lists(st.sampled_from([0, 1, 90]), min_size=1, max_size=60)


@given(LENGTHS, st.sampled_from([0, 1, 7]), st.randoms(use_true_random=False))
def test_pieces_are_what_slices_are(lengths: list[int], gap: int, random: object) -> None:
    ends = np.cumsum([length + gap for length in lengths], dtype=np.int64)
    starts = ends - np.array(lengths, np.int64)
    data = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64).astype(np.uint8)
    order = np.arange(len(starts))
    if gap:
        random.shuffle(order)  # type: ignore[attr-defined]
    starts, ends = starts[order], ends[order]
    flat, offsets = _columns.pick(data, starts, ends)
    assert flat.tobytes() == b"".join(
        data[start:end].tobytes() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    assert np.diff(offsets).tolist() == (ends - starts).tolist()
    assert not np.shares_memory(flat, data)  # readers use their buffers again


@given(st.lists(st.binary(max_size=9), max_size=30), st.permutations(range(30)))
def test_strings_end_at_their_first_nul(pieces: list[bytes], order: list[int]) -> None:
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = ends - np.array([len(piece) for piece in pieces], np.int64)
    rows = [row for row in order if row < len(pieces)]
    data = np.frombuffer(b"".join(pieces), np.uint8)
    made = _columns.strings(data, starts[rows], ends[rows])
    assert made.to_pylist() == [pieces[row].split(b"\0")[0].decode("utf-8", "replace") for row in rows]

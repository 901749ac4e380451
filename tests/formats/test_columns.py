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

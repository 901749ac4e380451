"""Where reading trace.dat takes a shortcut: it must lead to where the long way does."""

import numpy as np
import pytest

from tracekit.formats._event_format import Field
from tracekit.formats._event_rows import Raws, _dynamic
from tracekit.formats._trace_dat_read import _short_keys
from tracekit.formats._trace_dat_symbols import Comms


def test_tasks_outside_of_the_saved_names_have_none() -> None:
    tids = np.array([0, 7, 6, 8, 9, -1, -5, -(1 << 31), (1 << 31) - 1], np.int32)
    names = Comms(b"7 seven\n8 eight\n").column(tids).to_pylist()
    assert names == ["<idle>", "seven", None, "eight", *[None] * 5]


@pytest.mark.parametrize("kinds", [3, 256, 257, 2000])
def test_short_keys_sort_as_kinds_do(kinds: int) -> None:
    random = np.random.default_rng(kinds)
    kind = random.permutation(np.repeat(random.choice(1 << 16, kinds, replace=False), 3)).astype(np.uint16)
    keys = _short_keys(kind, np.bincount(kind))
    assert (np.argsort(keys, kind="stable") == np.argsort(kind, kind="stable")).all()


def test_strings_end_at_their_first_nul_or_where_the_record_says() -> None:
    texts = [b"one\0", b"two", b"", b"\0", b"a\0b\0", b"two\0\0"]
    data = np.frombuffer(b"".join(texts), np.uint8)
    size = np.array([len(text) for text in texts], np.int64)
    field = Field("name", "__data_loc char[]", 0, 4, False, "")
    raws = Raws(data, np.cumsum(size) - size, size)
    found = _dynamic(
        size.astype(np.uint32) << np.uint32(16), raws, field, lambda kind, number: pytest.fail(f"{kind} {number}")
    )
    assert found.to_pylist() == ["one", "two", "", "", "a", "two"]

"""The hash of a source, from what its reader showed and what was read for it alone."""

import hashlib
import random
from pathlib import Path

import pytest

from tracekit.errors import TraceFormatError
from tracekit.ingest import _Digest

BYTES = random.Random(1).randbytes(5 << 20)


def _file(directory: Path) -> Path:
    path = directory / "source"
    path.write_bytes(BYTES)
    return path


@pytest.mark.parametrize("blocks", [
    [],
    [(104, 5 << 20)],
    [(0, 1 << 20), (1 << 20, 3 << 20)],
    [(1 << 20, 2 << 20), (3 << 20, (3 << 20) + 5)],  # a gap between, and the end not shown
])  # fmt: skip
def test_all_of_a_file_is_in_its_hash_once(tmp_path: Path, blocks: list[tuple[int, int]]) -> None:
    digest = _Digest([(_file(tmp_path), len(BYTES))])
    for begin, end in blocks:
        digest.seen(begin, memoryview(BYTES)[begin:end])
    assert digest.result() == hashlib.sha256(BYTES).hexdigest()


def test_parts_follow_each_other(tmp_path: Path) -> None:
    path = _file(tmp_path)
    digest = _Digest([(path, len(BYTES)), (path, 7)])
    assert digest.result() == hashlib.sha256(BYTES + BYTES[:7]).hexdigest()


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    digest = _Digest([(path, len(BYTES) + 1)])
    with pytest.raises(TraceFormatError, match="changed while it was read"):
        digest.result()

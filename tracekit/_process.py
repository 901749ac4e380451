"""What is set for the whole process of the command line; a program that imports tracekit decides for itself."""

import ctypes
import gc
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = 1 << 30


def settle() -> None:
    """Before numpy and polars are imported."""
    # OpenBLAS starts a thread for each further CPU, and nothing here is linear algebra: 0.03 s of CPU on two
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # what polars frees goes back soon, and not ten seconds later: 340 MB less are resident while 10 million events are
    # sorted out, for a twentieth more time
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:200,muzzy_decay_ms:0")


def for_ingest() -> None:
    """What pays for the many arrays and few cycles of ingest."""
    gc.disable()  # it walks a hundred thousand objects of imports and formats, for nothing: 0.1 s of CPU
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep what is freed, which each window would map, have cleared and unmap anew.

    Ingest of 1.1 GB: 128,000 page faults become 85,000, 0.2 s of system time; the peak stays the same. Other libraries
    have no such function, or do nothing in it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)):
        mallopt(option, value)

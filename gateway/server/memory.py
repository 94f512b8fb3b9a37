"""How the C library hands memory out, tuned for batches."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_BLOCK_BYTES_MAX = 32 * 2**20
_KEPT_BYTES_MAX = 256 * 2**20


def keep_large_blocks() -> None:
    """Let blocks of a batch's size come from memory that the process keeps, where the C library can be told so (glibc).

    By default glibc maps a block of more than 128 KiB for each use and unmaps it afterwards. A batch of a few thousand
    rows makes several such blocks, and the page faults of fresh ones cost more than filling them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES_MAX)

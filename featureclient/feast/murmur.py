"""MurmurHash3 (x86, 32 bits), with which Feast names the fields of its hashes."""

_C1 = 0xCC9E2D51
_C2 = 0x1B873593
_WORD = 0xFFFFFFFF
_BLOCK_BYTES = 4


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """The hash as an unsigned number. The algorithm is Austin Appleby's MurmurHash3_x86_32, in the public domain."""
    whole = len(data) - len(data) % _BLOCK_BYTES
    state = seed
    for start in range(0, whole, _BLOCK_BYTES):
        state ^= _scrambled(int.from_bytes(data[start : start + _BLOCK_BYTES], "little"))
        state = (_rotated(state, 13) * 5 + 0xE6546B64) & _WORD
    state ^= _scrambled(int.from_bytes(data[whole:], "little"))
    state ^= len(data)
    state = ((state ^ state >> 16) * 0x85EBCA6B) & _WORD
    state = ((state ^ state >> 13) * 0xC2B2AE35) & _WORD
    return state ^ state >> 16


def _scrambled(block: int) -> int:
    return (_rotated(block * _C1 & _WORD, 15) * _C2) & _WORD


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> (32 - bits)) & _WORD

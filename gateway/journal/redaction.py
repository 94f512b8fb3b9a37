"""Personal data, before it is written: columns that are hashed, masked or left out.

hash   BLAKE2b-128 with the journal's salt as its key, 32 hexadecimal digits. Equal values have equal hashes, so they
       can be joined and counted; without the salt nobody can try out which value a hash is of.
mask   `***` for a text, null for a number: it is seen that there was one.
drop   the column is not in the files.

Null stays null. What stands in the files in clear is only what no policy names.
"""

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from gateway.journal.policy import Policy

MASK = "***"
_DIGEST_BYTES = 16


def redacted(values: pa.Array, policy: Policy | None, salt: bytes) -> pa.Array | None:
    """A column as it may be written; None for one that is left out."""
    if policy is None:
        return values
    if policy == "drop" or (policy == "mask" and pa.types.is_nested(values.type)):
        return None
    if policy == "hash":
        return _hashed(values, salt)
    if not pa.types.is_string(values.type):
        return pa.nulls(len(values), values.type)
    return pc.if_else(pc.is_valid(values), MASK, pa.scalar(None, pa.string()))


def _hashed(values: pa.Array, salt: bytes) -> pa.Array:
    """Each distinct value is hashed once: a number by its decimal digits, a vector by its elements' with commas."""
    if pa.types.is_nested(values.type):
        joined = [None if one is None else ",".join(map(str, one)) for one in values.to_pylist()]
        values = pa.array(joined, pa.string())
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    coded = values.cast(pa.string()).dictionary_encode()
    digests = [None if text is None else digest(text, salt) for text in coded.dictionary.to_pylist()]
    return pa.array(digests, pa.string()).take(coded.indices)


def digest(text: str, salt: bytes) -> str:
    """The hash of one value, as the files have it: for who looks for the rows of somebody."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES, key=salt).hexdigest()

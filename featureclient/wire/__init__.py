"""Keys and rows as bytes. Pure: `keys` names rows, `reader` admits stored rows into the cache, `writer` makes them.

`columns` brings what callers write (arrays, lists, Arrow) into a column's dtype.
"""

from featureclient.wire.keys import KeyCodec
from featureclient.wire.reader import Admitted, RowReader, refused, status_of, with_status
from featureclient.wire.writer import EncodedRows, RowWriter, sealed

__all__ = [
    "Admitted",
    "EncodedRows",
    "KeyCodec",
    "RowReader",
    "RowWriter",
    "refused",
    "sealed",
    "status_of",
    "with_status",
]

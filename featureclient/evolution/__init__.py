"""How catalogues change: what differs, what a change would break, and what of a view is stored.

difference   two catalogues, or two views -> changes                                          pure
checking     two catalogues, the models' pins, what was found in the store -> findings        pure
stored       the rows of a view version in the store: counted by revision, and dropped        on an `OnlineStore`
"""

from featureclient.evolution.checking import Finding, Pins, Severity, StoredRows, check
from featureclient.evolution.difference import Change, catalogue_changes, view_changes
from featureclient.evolution.stored import (
    CannotScan,
    Scanning,
    count_rows,
    drop_rows,
    look_at_rows,
    pages_of,
    row_pattern,
)

__all__ = [
    "CannotScan",
    "Change",
    "Finding",
    "Pins",
    "Scanning",
    "Severity",
    "StoredRows",
    "catalogue_changes",
    "check",
    "count_rows",
    "drop_rows",
    "look_at_rows",
    "pages_of",
    "row_pattern",
    "view_changes",
]

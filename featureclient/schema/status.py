"""Where a row came from, in one byte: the outcome in the low four bits, its cause in the high four.

Missing, null, stale and default are different things, and this byte keeps them so. (A null is not here at all: it is a
property of one value inside a row, kept in the row's validity bits.)
"""

UNSET = 0
PRESENT = 1
"""The store had the row."""
STALE = 2
"""The row is older than it should be, and the best there is."""
COMPUTED = 3
"""The row was computed on demand."""
DEFAULTED = 4
"""There is no row; every value is its column's declared default."""
MISSING = 5
"""There is no row, and a column has no default."""
OVERRIDDEN = 6
"""The caller replaced a value for this request."""

ABSENT = 0x10
"""The store answered, and it has no such row."""
INVALID = 0x20
"""The store had something that is not a row of this view."""
EXPIRED = 0x30
"""The event is older than the view's `max_age`."""
UNREACHED = 0x40
"""The store did not answer in time, or not at all."""
TIMED_OUT = 0x50
"""Computing the row took too long."""

OUTCOME_MASK = 0x0F
CAUSE_MASK = 0xF0

_OUTCOMES = {
    UNSET: "UNSET",
    PRESENT: "PRESENT",
    STALE: "STALE",
    COMPUTED: "COMPUTED",
    DEFAULTED: "DEFAULTED",
    MISSING: "MISSING",
    OVERRIDDEN: "OVERRIDDEN",
}
_CAUSES = {
    ABSENT: "ABSENT",
    INVALID: "INVALID",
    EXPIRED: "EXPIRED",
    UNREACHED: "UNREACHED",
    TIMED_OUT: "TIMED_OUT",
}


def describe(status: int) -> str:
    """`DEFAULTED (ABSENT)` for a status byte; numbers stand for bits that have no name."""
    outcome = status & OUTCOME_MASK
    cause = status & CAUSE_MASK
    named = _OUTCOMES.get(outcome, str(outcome))
    return f"{named} ({_CAUSES.get(cause, hex(cause))})" if cause else named

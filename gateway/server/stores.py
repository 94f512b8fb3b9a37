"""The store of the settings, with the views that Feast writes above it, and a log of Feast's rows that are refused."""

import logging
import time
from collections.abc import Callable

from featureclient.feast import Refusal
from featureclient.schema import Catalogue
from featureclient.store import OnlineStore
from featureclient.store.feast import with_feast
from featureclient.store.opening import StoreOptions, open_store

LINES_MAX = 10
"""Refused rows that are logged in one period."""
PERIOD_S = 60.0
_log = logging.getLogger(__name__)


class RefusalLog:
    """Logs the first rows that are refused in each period, and then how many more there were.

    A view whose definition does not fit refuses every row, thousands a second. All of them are counted in
    `headrace_invalid_rows_total`; the lines are for whoever has to find out which column it is.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until = 0.0
        self._lines = 0
        self._left_out = 0

    def __repr__(self) -> str:
        return f"<RefusalLog lines={self._lines} left_out={self._left_out}>"

    def __call__(self, refusal: Refusal) -> None:
        """A row was refused."""
        now = self._monotonic()
        if now >= self._until:
            self.close()
            self._until, self._lines = now + PERIOD_S, 0
        if self._lines < LINES_MAX:
            self._lines += 1
            _log.warning("a row of Feast's is refused: %s", refusal)
        else:
            self._left_out += 1

    def close(self) -> None:
        """Say how many were left out, if any were."""
        if self._left_out:
            _log.warning("%s more rows of Feast's were refused", f"{self._left_out:,}")
            self._left_out = 0


def open_rows(options: StoreOptions, catalogue: Catalogue, on_refused: Callable[[Refusal], None]) -> OnlineStore:
    """The store that holds the rows of all views of a catalogue. It connects when it is first used."""
    return with_feast(open_store(options), catalogue.views.values(), on_refused=on_refused)

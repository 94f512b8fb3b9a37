"""What the parts of one client share: the store, the options, time, chance, and where events go."""

from collections.abc import Callable
from dataclasses import dataclass

from featureclient.client.options import ClientOptions
from featureclient.events import Event
from featureclient.store import OnlineStore


@dataclass(frozen=True, slots=True)
class Shared:
    """`monotonic` gives seconds, `wall_ms` milliseconds since the epoch, `chance` numbers from 0 to 1."""

    store: OnlineStore
    options: ClientOptions
    emit: Callable[[Event], None]
    monotonic: Callable[[], float]
    wall_ms: Callable[[], int]
    chance: Callable[[], float]

    @property
    def event_ms_max(self) -> int:
        """The latest event that is believed, in milliseconds since the epoch."""
        return self.wall_ms() + self.options.clock_skew_max_ms

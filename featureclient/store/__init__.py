"""Where rows live: the `OnlineStore` protocol, and the stores that have it, the only modules that import redis."""

from featureclient.store.protocol import (
    UNREAD,
    AllChanged,
    Change,
    KeysChanged,
    OnlineStore,
    PartlyRead,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    Unread,
    WatchLost,
    WatchRestored,
    WatchUnsupported,
)

__all__ = [
    "OnlineStore",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "PartlyRead",
    "UNREAD",
    "Unread",
    "WatchUnsupported",
    "Change",
    "KeysChanged",
    "AllChanged",
    "WatchLost",
    "WatchRestored",
]

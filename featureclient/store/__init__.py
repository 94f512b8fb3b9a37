"""Where rows live: the `OnlineStore` protocol, and `featureclient.store.redis`, the only module that imports redis."""

from featureclient.store.protocol import OnlineStore, StoreError, StoreRefused, StoreUnavailable

__all__ = ["OnlineStore", "StoreError", "StoreRefused", "StoreUnavailable"]

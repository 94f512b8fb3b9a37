"""The tiers in order: the cache, one coalesced read of the store, the defaults."""

from featureclient.client.client import Ask, FeatureClient, Written
from featureclient.client.fetches import Fetch
from featureclient.client.options import ClientOptions
from featureclient.client.rows import Rows

__all__ = ["Ask", "ClientOptions", "FeatureClient", "Fetch", "Rows", "Written"]

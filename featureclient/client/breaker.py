"""The breaker of the store: `featureclient.breaker`, under the name that the client's modules use."""

from featureclient.breaker import Breaker

__all__ = ["Breaker"]

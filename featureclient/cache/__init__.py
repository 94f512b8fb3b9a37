"""A bounded map per view from id to row bytes. Pure: `now` is an argument."""

from featureclient.cache.generations import Generations
from featureclient.cache.options import CacheOptions
from featureclient.cache.view_cache import CacheSnapshot, ViewCache

__all__ = ["CacheOptions", "CacheSnapshot", "Generations", "ViewCache"]

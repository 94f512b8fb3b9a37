"""The layout of Feast's online store in Redis: keys, hash fields, values; and Feast's registry as a catalogue.

Pure. Nothing here needs Feast to be installed, and nothing of it is imported.
"""

from featureclient.feast.keys import FeastKeys
from featureclient.feast.rows import FeastRows, Refusal

__all__ = ["FeastKeys", "FeastRows", "Refusal"]

"""Which ids are hot, remembered over restarts, and read before the first request asks for them.

HotKeys, Sampler     count a sample of what is looked up           pure
Warmer               saves and merges the counts, prefetches, warms from files and by schedule
Together             which ids come together, to read ahead        pure
"""

from featureclient.warmup.hotkeys import HotKeys, HotKeysInvalid
from featureclient.warmup.idfile import BadLine, IdFile, IdFileError
from featureclient.warmup.options import ScheduledWarming, WarmupOptions
from featureclient.warmup.progress import (
    CountsLoaded,
    CountsSaved,
    ScheduleSkipped,
    WarmingAdvanced,
    WarmingEnded,
    WarmupEvent,
)
from featureclient.warmup.sampler import Sampler
from featureclient.warmup.saved import Blobs
from featureclient.warmup.schedule import Schedule
from featureclient.warmup.together import Together
from featureclient.warmup.warmer import Warmer
from featureclient.warmup.warming import Room, Warm, Warmed

__all__ = [
    "BadLine",
    "Blobs",
    "CountsLoaded",
    "CountsSaved",
    "HotKeys",
    "HotKeysInvalid",
    "IdFile",
    "IdFileError",
    "Room",
    "Sampler",
    "Schedule",
    "ScheduleSkipped",
    "ScheduledWarming",
    "Together",
    "Warm",
    "Warmed",
    "Warmer",
    "WarmingAdvanced",
    "WarmingEnded",
    "WarmupEvent",
    "WarmupOptions",
]

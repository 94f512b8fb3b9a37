"""Filling views in bulk: from files (`load_file`), and from what a view computes (`Backfill`)."""

from featureclient.load.backfilling import (
    Backfill,
    BackfillOptions,
    BackfillRefused,
    BackfillReport,
    BackfillStopped,
    older_version,
    refuse_other_ids,
    refuse_what_others_write,
)
from featureclient.load.loading import LoadReport, OnBadRow, load_file
from featureclient.load.pacing import Pace
from featureclient.load.sources import LoadError

__all__ = [
    "Backfill",
    "BackfillOptions",
    "BackfillRefused",
    "BackfillReport",
    "BackfillStopped",
    "LoadError",
    "LoadReport",
    "OnBadRow",
    "Pace",
    "load_file",
    "older_version",
    "refuse_other_ids",
    "refuse_what_others_write",
]

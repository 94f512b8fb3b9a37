"""Bulk loading of files into a view: `load_file`."""

from featureclient.load.loading import LoadReport, OnBadRow, load_file
from featureclient.load.sources import LoadError

__all__ = ["LoadError", "LoadReport", "OnBadRow", "load_file"]

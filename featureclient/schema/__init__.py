"""Entities, views, versions, revisions, dtypes, and the catalogue that holds them. Pure, but for reading the YAML."""

from featureclient.schema.age import ages_ms, apply_age
from featureclient.schema.catalogue import EVENT_TIME, Catalogue
from featureclient.schema.compute import Compute, DuckdbSource, PostgresSource, PythonCompute, Source, SqlCompute
from featureclient.schema.dtype import DType, Value
from featureclient.schema.errors import (
    BadRow,
    ConfigError,
    FeatureError,
    InvalidId,
    InvalidTable,
    Problem,
    UnknownView,
)
from featureclient.schema.feast import FeastSource
from featureclient.schema.layout import Layout, Place
from featureclient.schema.view import Column, Entity, Id, JoinKey, OnMissing, Revision, View

__all__ = [
    "OnMissing",
    "SqlCompute",
    "Source",
    "PythonCompute",
    "PostgresSource",
    "DuckdbSource",
    "Compute",
    "EVENT_TIME",
    "BadRow",
    "Catalogue",
    "Column",
    "ConfigError",
    "DType",
    "Entity",
    "FeastSource",
    "FeatureError",
    "Id",
    "InvalidId",
    "InvalidTable",
    "JoinKey",
    "Layout",
    "Place",
    "Problem",
    "Revision",
    "UnknownView",
    "Value",
    "View",
    "ages_ms",
    "apply_age",
]

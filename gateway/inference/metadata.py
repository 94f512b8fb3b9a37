"""What a graph's file says beside its inputs: names of columns in its metadata, operators that need a warning."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import onnxruntime

NAME_KEYS = ("feature_names", "column_names", "columns", "features")
"""Keys of the metadata under which exporters leave the names of a matrix's columns."""
_QUANTISED_BY_BATCH = b"DynamicQuantizeLinear"


def metadata_of(path: Path) -> Mapping[str, str]:
    """The metadata of a graph, by key. The graph is one that loads."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def names_in(text: str) -> list[str]:
    """Names as they are written: a JSON list, or separated by commas or lines."""
    try:
        read = json.loads(text)
    except ValueError:
        read = text.replace("\n", ",").split(",")
    if not isinstance(read, list):
        return []
    return [name for name in (str(one).strip() for one in read) if name]


def column_names(metadata: Mapping[str, str]) -> list[str]:
    """The names of columns in a graph's metadata; none where it says none."""
    for key in NAME_KEYS:
        names = names_in(metadata.get(key, ""))
        if names:
            return names
    return []


def depends_on_batch(path: Path) -> str:
    """Why an answer of the graph may depend on the other rows of its batch; empty where nothing says so."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_QUANTISED_BY_BATCH) < 0:
            return ""
    return (
        "it is quantised dynamically (DynamicQuantizeLinear), by the range of the whole batch: an answer depends on "
        "the rows that it is run with; quantise it statically, with calibration data"
    )

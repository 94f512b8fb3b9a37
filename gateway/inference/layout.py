"""What lies in a model repository, read without loading a graph.

    <root>/<name>/model.yaml        a manifest: features are looked up, columns fill the graph's inputs
    <root>/<name>/config.pbtxt      Triton's description; a plain model without a manifest beside it
    <root>/<name>/<int>/model.onnx  a version
    <root>/<name>/MLmodel           a model that MLflow wrote, as version 1; or <root>/<name>/<int>/MLmodel

Invariants
- A name is one folder's name. Nothing outside the root is opened: not by a name, not through a symbolic link.
- What is found carries a stamp of every file, so that what has not changed is not loaded again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from featureclient.schema import Problem
from gateway.inference.mlflow_folder import graph_of
from gateway.inference.model import Refused
from gateway.plan.manifest import LatestUse, Versions

NAME_BYTES_MAX = 200
"""Of a model's name. A folder's name may have 255 bytes."""
FILES_MAX = 1_000
"""Files of one version. A graph with external data has some dozens."""
MANIFEST, TRITON, MLFLOW, GRAPH, GOLDEN = "model.yaml", "config.pbtxt", "MLmodel", "model.onnx", "golden.json"
_SHOWN = 64

Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""(path, size, when it was changed in ns, inode) of each file. A file that was replaced has another inode."""


@dataclass(frozen=True, slots=True)
class Found:
    """A version: the file of its graph, and the stamp of everything in its folder."""

    path: Path
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Entry:
    """A model's folder as it was found. `stamp` is that of its descriptions, and `versions` are all that are there."""

    name: str
    folder: Path
    manifest: Path | None
    triton: Path | None
    stamp: Stamp
    versions: Mapping[int, Found]
    problems: Sequence[Problem]

    @property
    def whole_stamp(self) -> Stamp:
        """Of everything."""
        return (*self.stamp, *(stamp for found in self.versions.values() for stamp in found.stamp))


def check_name(name: str) -> str:
    """The name, if it can be that of a model. Raises Refused."""
    shown = ascii(name[:_SHOWN])
    if not name:
        raise Refused("the name of a model is empty")
    if len(name.encode(errors="surrogatepass")) > NAME_BYTES_MAX:
        raise Refused(f"the name of a model has at most {NAME_BYTES_MAX} bytes; {shown}… is longer")
    if name.startswith(".") or any(part in name for part in ("/", "\\", "\0")) or not name.isprintable():
        raise Refused(f"{shown} cannot be the name of a model: it is one folder's name, with no dot in front, / or \\")
    return name


def names(root: Path) -> list[str]:
    """The folders of a repository that may be models, in order. Raises OSError where the root cannot be read."""
    with os.scandir(root) as entries:
        found = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return sorted(found)


def look(root: Path, name: str) -> Entry | None:
    """What lies in the folder of a model; None where there is none, or nothing of a model is in it.

    Raises Refused for a name, and OSError for what cannot be read.
    """
    folder = root / check_name(name)
    if not folder.is_dir():
        return None
    inside(root, folder)
    problems: list[Problem] = []
    described = {file: folder / file for file in (MANIFEST, TRITON, MLFLOW) if (folder / file).is_file()}
    for path in described.values():
        inside(root, path)
    versions: dict[int, Found] = {}
    for version, path in _candidates(folder, described):
        try:
            graph = inside(root, _graph(root, path))
            if graph.exists() and not graph.is_file():  # opening a pipe would wait for a writer, for ever
                raise Refused(f"{graph.name} is no regular file")
            stamp = _stamp(root, graph.parent)
            # An MLmodel may name another graph of the same folder from one day to the next.
            versions[version] = Found(graph, (*stamp, _stamp_of(path)) if path.name == MLFLOW else stamp)
        except (Refused, OSError) as error:
            problems.append(Problem(str(path), 0, "", str(error)))
    if not described and not versions and not problems:
        return None
    stamp = tuple([_stamp_of(path) for path in described.values()])
    return Entry(name, folder, described.get(MANIFEST), described.get(TRITON), stamp, versions, problems)


def has_model(root: Path, name: str) -> bool:
    """Whether there is anything of a model in a folder, be it wrong."""
    try:
        return look(root, name) is not None
    except (Refused, OSError):
        return True


def inside(root: Path, path: Path) -> Path:
    """The path, if what it leads to lies below the root. Raises Refused for a link that leads out."""
    real, home = path.resolve(), root.resolve()
    if real != home and home not in real.parents:
        raise Refused(
            f"{path.relative_to(root)} is a link to {real}, outside the model repository; copy the file into it"
        )
    return path


def _candidates(folder: Path, described: Mapping[str, Path]) -> Iterator[tuple[int, Path]]:
    """Version -> the file that says it is one."""
    if MLFLOW in described:
        yield 1, described[MLFLOW]
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_version(path.name):
            mlflow, graph = path / MLFLOW, path / GRAPH
            # Without a description, a number with no graph in it is somebody's folder and no model.
            if mlflow.is_file():
                yield int(path.name), mlflow
            elif described or graph.is_file() or graph.is_symlink():
                yield int(path.name), graph


def _graph(root: Path, path: Path) -> Path:
    """The graph's file: `path` itself, or what an MLmodel beside it names."""
    if path.name != MLFLOW:
        return path
    return graph_of(inside(root, path))


def chosen(versions: Versions, there: Sequence[int]) -> tuple[list[int], list[int]]:
    """The versions that a policy lets serve of those that are there, and those that it names and are not there."""
    if isinstance(versions, list):
        return [version for version in there if version in versions], sorted({*versions} - {*there})
    if versions == "all":
        return list(there), []
    count = versions.latest if isinstance(versions, LatestUse) else 1
    return sorted(there)[-count:], []


def is_version(name: str) -> bool:
    """A number as it is usually written: `7` and not `007`, which would be another folder of the same version."""
    return name.isascii() and name.isdecimal() and len(name) < 19 and str(int(name)) == name  # noqa: PLR2004 - an int64


def _stamp(root: Path, folder: Path) -> Stamp:
    """Of everything in the folder of a version, however deep."""
    files = []
    for path in folder.rglob("*"):
        if path.is_symlink():
            inside(root, path)
        if path.is_file():
            files.append(path)
            if len(files) > FILES_MAX:
                raise Refused(
                    f"{folder} holds more than {FILES_MAX} files; a version has its graph and what belongs to it"
                )
    return tuple(sorted(_stamp_of(path) for path in files))


def _stamp_of(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return (str(path), found.st_size, found.st_mtime_ns, found.st_ino)

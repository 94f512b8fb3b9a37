"""Copies a model repository from an object store into the local folder that is served.

    list ─▶ compare with what was copied (etag, size, sha256 of the file) ─▶ fetch beside ─▶ check ─▶ rename into place

Invariants
- A file is there whole or not at all: it is fetched under another name, checked, and renamed. The files of a version
  are renamed after all of them have been fetched, the graph last.
- What is kept in `.headrace-mirror.json` is what was fetched. A local file that is not that is fetched again.
- Names come from strangers: one that would lie outside the folder, or has a hidden part, is refused. No link is made.
- An address that cannot be listed, or lists nothing, removes nothing.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from gateway.inference.layout import GRAPH, NAME_BYTES_MAX
from gateway.inference.model import Refused

OBJECTS_MAX = 100_000
OBJECT_BYTES_MAX = 16 << 30
PATH_BYTES_MAX = 1024
STATE_FILE = ".headrace-mirror.json"
_INCOMING = ".headrace-incoming"
_CHUNK_BYTES = 8 << 20
_RETRIES_MAX = 3
"""Of one request; the next pass tries again."""
_RETRY_S = 10.0


class MirrorError(Exception):
    """The address cannot be read, or what it holds is no model repository; the message says why."""


@dataclass(frozen=True, slots=True)
class Copied:
    """An object as it was copied."""

    etag: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What one pass did: files that were fetched, files that were removed, and objects that were refused, with why."""

    fetched: tuple[str, ...]
    removed: tuple[str, ...]
    refused: tuple[str, ...]


class Mirror:
    """One address and the folder that it is copied into. `copy` blocks: call it in a thread."""

    def __init__(self, address: str, folder: Path, options: Mapping[str, str]) -> None:
        self.address = address
        self.folder = folder
        self._store = _open(address, options)
        self._copied = self._read_state()
        self._checked = False

    def __repr__(self) -> str:
        return f"<Mirror {self.address} -> {self.folder}, {len(self._copied)} files>"

    def copy(self) -> Mirrored:
        """Make the folder what the address is. Raises MirrorError when it cannot be listed, read or written."""
        try:
            return self._copy()
        except OSError as error:
            raise MirrorError(f"{self.address} cannot be copied to {self.folder}: {error}") from error

    def _copy(self) -> Mirrored:
        objects, refused = self._list()
        if not objects:
            raise MirrorError(f"{self.address} lists no file of a model; nothing is removed")
        wanted = [path for path, meta in objects.items() if not self._is_there(path, meta)]
        incoming = {path: self._fetch(path, objects[path]) for path in wanted}
        # The graph of a version comes last: whoever looks meanwhile finds no graph, or everything.
        for path in sorted(wanted, key=lambda path: (PurePosixPath(path).name == GRAPH, path)):
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._incoming(path).replace(target)
            self._copied[path] = incoming[path]
            self._write_state()
        removed = [path for path in self._copied if path not in objects]
        for path in removed:
            self._remove(path)
        if removed:
            self._write_state()
        self._checked = True
        return Mirrored(tuple(wanted), tuple(removed), tuple(refused))

    def _list(self) -> tuple[dict[str, Any], list[str]]:
        """Path -> what the store says of it, and those that are refused."""
        objects: dict[str, Any] = {}
        refused: list[str] = []
        try:
            for page in self._store.list():
                for meta in page:
                    try:
                        objects[_local(meta["path"])] = meta
                    except Refused as error:
                        refused.append(str(error))
                    if len(objects) > OBJECTS_MAX:
                        raise MirrorError(f"{self.address} has more than {OBJECTS_MAX:,} files")
        except MirrorError:
            raise
        except Exception as error:
            raise MirrorError(f"{self.address} cannot be listed: {_first_line(error)}") from error
        folders = {str(parent) for path in objects for parent in PurePosixPath(path).parents}
        for path in [path for path in objects if path in folders]:
            del objects[path]
            refused.append(f"{path!a} is the name of a file and of a folder; the file is left out")
        return objects, refused

    def _is_there(self, path: str, meta: Mapping[str, Any]) -> bool:
        """Whether the local file is the object. In the first pass its bytes are looked at, later its size."""
        copied, target = self._copied.get(path), self.folder / path
        if copied is None or (copied.etag, copied.size) != (_etag(meta), meta["size"]):
            return False
        try:
            if target.is_symlink() or target.stat().st_size != copied.size:
                return False
            return self._checked or _sha256(target) == copied.sha256
        except OSError:
            return False

    def _fetch(self, path: str, meta: Mapping[str, Any]) -> Copied:
        """Fetch an object into the folder of unfinished files."""
        size = int(meta["size"])
        if size > OBJECT_BYTES_MAX:
            raise MirrorError(f"{path} has {size:,} bytes, more than {OBJECT_BYTES_MAX:,}")
        unfinished = self.folder / _INCOMING / f"{os.getpid()}.part"
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        digest, written = hashlib.sha256(), 0
        try:
            with unfinished.open("wb") as file:
                for chunk in self._store.get(meta["path"]).stream(min_chunk_size=_CHUNK_BYTES):
                    data = bytes(chunk)
                    digest.update(data)
                    written += file.write(data)
                    if written > size:
                        break
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            unfinished.unlink(missing_ok=True)
            raise MirrorError(f"{self.address}: {path} cannot be read: {_first_line(error)}") from error
        if written != size:
            unfinished.unlink(missing_ok=True)
            raise MirrorError(f"{self.address}: {path} gave {written:,} bytes of {size:,}; it is tried again")
        copied = Copied(_etag(meta), size, digest.hexdigest())
        unfinished.replace(self._incoming(path))
        return copied

    def _incoming(self, path: str) -> Path:
        """Where an object waits until all of its version are there."""
        return self.folder / _INCOMING / hashlib.sha256(path.encode()).hexdigest()

    def _remove(self, path: str) -> None:
        target = self.folder / path
        target.unlink(missing_ok=True)
        del self._copied[path]
        for parent in target.parents:
            if parent == self.folder:
                break
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()

    def _read_state(self) -> dict[str, Copied]:
        """What was copied before. A file that cannot be read is as good as none: everything is fetched again."""
        try:
            content = json.loads((self.folder / STATE_FILE).read_bytes())
            if content["address"] != self.address:
                return {}
            return {_local(path): Copied(**copied) for path, copied in content["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, Refused):
            return {}

    def _write_state(self) -> None:
        files = {path: asdict(copied) for path, copied in self._copied.items()}
        unfinished = self.folder / f"{STATE_FILE}.part"
        unfinished.write_text(json.dumps({"address": self.address, "files": files}))
        unfinished.replace(self.folder / STATE_FILE)


def _local(path: str) -> str:
    """The path of an object below the folder. Raises Refused for one that is no plain path."""
    parts = path.split("/")
    plain = all(part and not part.startswith(".") and part.isprintable() and "\\" not in part for part in parts)
    if not plain or len(path.encode()) > PATH_BYTES_MAX or max(len(part.encode()) for part in parts) > NAME_BYTES_MAX:
        raise Refused(f"{path[:200]!a} cannot be the name of a model's file; it is left out")
    return path


def _etag(meta: Mapping[str, Any]) -> str:
    """What the store calls this content; where it has no etag, when it was written."""
    return str(meta.get("e_tag") or meta.get("last_modified") or "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _open(address: str, options: Mapping[str, str]) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise MirrorError("repository.mirror needs obstore: pip install 'headrace[objects]'") from error
    try:
        # Plain HTTP has to be allowed, and is where somebody writes it.
        plain = any(value.startswith("http://") for value in (address, *options.values()))
        client = {"allow_http": True} if plain else None
        retries = {"max_retries": _RETRIES_MAX, "retry_timeout": timedelta(seconds=_RETRY_S)}
        named: dict[str, Any] = {"client_options": client, "retry_config": retries, **options}
        return from_url(address, **named)
    except Exception as error:
        raise MirrorError(f"{address} cannot be opened: {_first_line(error)}") from error

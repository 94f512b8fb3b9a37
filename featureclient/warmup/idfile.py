"""Files that name ids to warm, read piece by piece: text, CSV, JSON lines, Parquet. Everything here blocks.

    text      .txt, .ids or no suffix    plane_stats@1 N14228         the view, then the parts of the id, by white space
    CSV       .csv                       a header with `view` and the names of join keys; other columns are passed over
    JSON      .jsonl, .ndjson            {"view": "weather@1", "id": ["JFK", 5]}, or "ids" with several
    Parquet   .parquet, .pq              as CSV, with pyarrow

Where the caller names the view for the whole file, lines of text have only the id, and `view` may be left out. So the
file that a view was loaded from can be the file that it is warmed from.

A line that is wrong is passed over, and named with its number. Lines count from 1, a header among them; in Parquet,
rows do. Empty lines and those that start with `#` are comments. Ids come out in canonical form.

Bounds: a line has at most `LINE_BYTES_MAX` bytes, a piece at most `piece_ids` ids of one view (and the ids of one
line), a file at most `ids_max` ids; what is behind them is not read.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from featureclient.schema import Catalogue, FeatureError, Id, InvalidId, UnknownView, View
from featureclient.wire import KeyCodec

LINE_BYTES_MAX = 65_536
IDS_MAX = 10_000_000
SUFFIXES = ".txt, .ids, .csv, .jsonl, .ndjson, .parquet or .pq"

Given: TypeAlias = tuple[int, View, Sequence[Any]]
"""A line's number, its view, and its ids as they were given."""


class IdFileError(FeatureError):
    """The file as a whole cannot be used."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is wrong. `line` counts from 1."""

    line: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}"


class Piece(NamedTuple):
    """Ids of one view, in the order of the file, and the wrong lines met meanwhile. Only those where `view` is None."""

    view: View | None
    ids: Sequence[Id]
    bad_lines: Sequence[BadLine]


class IdFile:
    """One file. Raises IdFileError when it is opened, or its header is read, if it cannot be used; UnknownView."""

    def __init__(
        self, path: str | Path, catalogue: Catalogue, view: str | None = None, *, piece_ids: int = 512,
        ids_max: int = IDS_MAX,
    ) -> None:  # fmt: skip
        self._path = Path(path)
        self._catalogue = catalogue
        self._view = None if view is None else catalogue.view(view)
        self._piece_ids = piece_ids
        self._ids_max = ids_max
        self._codecs: dict[View, KeyCodec] = {}
        readers: dict[str, Callable[[], Iterator[Given | BadLine]]] = {
            "": self._text, ".txt": self._text, ".ids": self._text, ".csv": self._csv,
            ".jsonl": self._json, ".ndjson": self._json, ".parquet": self._parquet, ".pq": self._parquet,
        }  # fmt: skip
        reader = readers.get(self._path.suffix.lower())
        if reader is None:
            raise IdFileError(f"{path}: not a file of ids that can be read; the name has to end with {SUFFIXES}")
        if not self._path.is_file():
            raise IdFileError(f"{path}: there is no such file")
        self._reader = reader

    def pieces(self) -> Iterator[Piece]:
        """The ids of the file. To be called once."""
        waiting: dict[View, list[Id]] = {}
        bad: list[BadLine] = []
        room = self._ids_max
        for given in self._read():
            made = given if isinstance(given, BadLine) else self._canonical(*given)
            if isinstance(made, BadLine):
                bad.append(made)
                if len(bad) < self._piece_ids:
                    continue
                yield Piece(None, (), bad)
                bad = []
                continue
            view, ids = made
            some = waiting.setdefault(view, [])
            some += ids[:room]
            room -= len(ids)
            if len(some) >= self._piece_ids or room <= 0:
                yield Piece(view, waiting.pop(view), bad)
                bad = []
            if room <= 0:
                break
        for view, some in waiting.items():
            yield Piece(view, some, bad)
            bad = []
        if bad:
            yield Piece(None, (), bad)

    def _read(self) -> Iterator[Given | BadLine]:
        try:
            yield from self._reader()
        except (OSError, csv.Error) as error:
            raise IdFileError(f"{self._path}: cannot be read: {error}") from error

    def _canonical(self, line: int, view: View, given: Sequence[Any]) -> tuple[View, Sequence[Id]] | BadLine:
        codec = self._codecs.get(view)
        if codec is None:
            codec = self._codecs[view] = KeyCodec(view)
        try:
            return view, codec.encode(given)[0]  # keys are made only to find what cannot be one
        except InvalidId as error:
            return BadLine(line, str(error))

    # ── Formats ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lines(self) -> Iterator[tuple[int, str] | BadLine]:
        """Lines without their ends; empty ones and comments are passed over."""
        with self._path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LINE_BYTES_MAX)
                    yield BadLine(number, f"longer than LINE_BYTES_MAX ({LINE_BYTES_MAX})")
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    yield BadLine(number, "not UTF-8")
                    continue
                if text and not text.startswith("#"):
                    yield number, text

    def _text(self) -> Iterator[Given | BadLine]:
        for line in self._lines():
            if isinstance(line, BadLine):
                yield line
                continue
            number, text = line
            parts = text.split()
            view = self._view if self._view is not None else self._known(number, parts.pop(0))
            if isinstance(view, BadLine):
                yield view
                continue
            names = [key.name for key in view.entity.join_keys]
            if len(parts) == len(names):
                yield number, view, [_id_of(parts)]
            else:
                yield BadLine(number, f"{len(parts)} values; an id of {view.ref} is {' and '.join(names)}")

    def _json(self) -> Iterator[Given | BadLine]:
        for line in self._lines():
            if isinstance(line, BadLine):
                yield line
                continue
            number, text = line
            try:
                given = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield BadLine(number, f"not JSON: {error}")
                continue
            yield self._of_object(number, given)

    def _of_object(self, number: int, given: Any) -> Given | BadLine:
        if not isinstance(given, dict):
            return BadLine(number, 'not an object like {"view": "plane_stats@1", "id": "N14228"}')
        view = self._known(number, given.get("view"))
        if isinstance(view, BadLine):
            return view
        ids = given["ids"] if "ids" in given else [given["id"]] if "id" in given else None
        if not isinstance(ids, list) or not ids:
            return BadLine(number, "it needs `id`, or `ids` with at least one")
        return number, view, [tuple(one) if isinstance(one, list) else one for one in ids]

    def _csv(self) -> Iterator[Given | BadLine]:
        lines = self._lines()
        header: list[str] | None = None
        for line in lines:
            if isinstance(line, BadLine):
                yield line
                continue
            number, text = line
            cells = next(csv.reader([text]), [])
            if header is None:
                header = [cell.strip() for cell in cells]
                self._check_header(header)
            elif len(cells) != len(header):
                yield BadLine(number, f"{len(cells)} cells; the header has {len(header)}")
            else:
                yield self._of_cells(number, dict(zip(header, cells, strict=True)))

    def _parquet(self) -> Iterator[Given | BadLine]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise IdFileError(f"{self._path}: Parquet needs pyarrow: pip install 'headrace[arrow]'") from error
        try:
            with pq.ParquetFile(self._path) as file:
                names = file.schema_arrow.names
                self._check_header(names)
                keys = {key.name for entity in self._catalogue.entities.values() for key in entity.join_keys}
                wanted = [name for name in names if name in keys or name == "view"]
                number = 0
                for batch in file.iter_batches(self._piece_ids, columns=wanted):
                    for cells in batch.to_pylist():
                        number += 1
                        yield self._of_cells(number, cells)
        except pa.ArrowException as error:
            raise IdFileError(f"{self._path}: cannot be read: {error}") from error

    def _check_header(self, names: Sequence[str]) -> None:
        needed = ["view"] if self._view is None else [key.name for key in self._view.entity.join_keys]
        missing = [name for name in needed if name not in names]
        if missing:
            raise IdFileError(
                f"{self._path}: no column {', '.join(missing)}; there are: {', '.join(names) or 'none'}."
                " A file has the column `view`, or is given one for all its lines, and the columns of the join keys"
            )

    def _of_cells(self, number: int, cells: Mapping[str, Any]) -> Given | BadLine:
        view = self._known(number, cells.get("view"))
        if isinstance(view, BadLine):
            return view
        names = [key.name for key in view.entity.join_keys]
        missing = [name for name in names if name not in cells]
        if missing:
            return BadLine(number, f"{view.ref} needs the column {', '.join(missing)}")
        return number, view, [_id_of([cells[name] for name in names])]

    def _known(self, number: int, ref: Any) -> View | BadLine:
        if self._view is not None:
            return self._view
        if not isinstance(ref, str):
            return BadLine(number, "it names no view")
        try:
            return self._catalogue.view(ref.strip())
        except UnknownView as error:
            return BadLine(number, str(error))


def _id_of(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else tuple(parts)

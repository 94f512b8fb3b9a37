"""The reference profile of a model version: what its columns and outputs looked like in the training data.

It is a JSON file beside the graph, `models/<name>/<version>/profile.json`, written by `headrace profile` and read when
the model is loaded. It belongs to one model version and to the revisions of its views: `Profile.mismatches` says when
it does not fit what is being loaded.

Reading is strict. A file that another version of the format wrote, that is cut short, or whose numbers contradict each
other is a `ProfileError` that names the place; nothing is guessed.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

SCHEMA = 1
"""The version of the file's format."""

BINS = 20
EDGES = tuple(i / BINS for i in range(BINS + 1))
"""The quantiles whose values are the edges of the bins."""
TAILS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
"""More quantiles, for thresholds that are learned."""
FILE = "profile.json"
BYTES_MAX = 64 * 1024 * 1024
"""A larger file is no profile."""
_SHARES_TOLERANCE = 1e-6

Measure: TypeAlias = Literal["value", "norm", "category"]


class ProfileError(Exception):
    """A profile that cannot be read, or not used. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """One column. The numbers are of finite values: nulls, NaN and infinities are counted and left out."""

    dtype: str
    measure: Measure
    """What the numbers describe: the values, the Euclidean norm of a vector, or nothing (strings)."""
    count: int
    """Rows, nulls among them."""
    nulls: int = 0
    """Rows of a stored column without a value."""
    nans: int = 0
    """Rows with a NaN; a vector counts once."""
    infinities: int = 0
    mean: float | None = None
    """None without finite values, and where the sum is beyond a float64."""
    std: float | None = None
    """Of the sample (divided by count - 1); None below two values."""
    min: float | None = None
    max: float | None = None
    edges: tuple[float, ...] = ()
    """The quantiles 0, 0.05, … 1: 21 numbers, equal ones where a value is frequent. Empty without finite values."""
    shares: tuple[float, ...] = ()
    """The share of the finite values in each of the 20 bins, as `np.histogram(values, edges)` counts them: a bin has
    its left edge, the last also its right one."""
    tails: Mapping[float, float] = field(default_factory=dict)
    """Quantile -> value, at `TAILS`."""
    categories: Mapping[str, float] | None = None
    """Value -> share of the rows that have one, most frequent first: of strings, and of numbers with few values."""
    other: float = 0.0
    """The share of the values that `categories` does not list."""
    means: tuple[float, ...] = ()
    """Of a vector: the mean of each element over the rows where all are finite."""

    @property
    def null_share(self) -> float:
        """Nulls among the rows."""
        return self.nulls / self.count if self.count else 0.0

    @property
    def complete(self) -> bool:
        """`categories` lists every value that there was."""
        return self.categories is not None and self.other == 0.0

    def quantile(self, share: float) -> float | None:
        """The value below which this share of the values lies, between known quantiles by a straight line."""
        if not self.edges:
            return None
        known = {**dict(zip(EDGES, self.edges, strict=True)), **self.tails}
        below = max(at for at in known if at <= share)
        above = min(at for at in known if at >= share)
        if above == below:
            return known[below]
        weight = (share - below) / (above - below)
        return known[below] + weight * (known[above] - known[below])


@dataclass(frozen=True, slots=True)
class GroupProfile:
    """How columns of a named subset vary together, for the Mahalanobis distance."""

    columns: tuple[str, ...]
    count: int
    """Rows in which all of them are finite."""
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of one model version."""

    model: str
    version: int
    manifest_hash: str
    """Of the `model.yaml` that the columns were computed by."""
    views: Mapping[str, int]
    """`plane_stats@1` -> fingerprint of the revision that the data had."""
    rows: int
    created: str
    """ISO 8601, UTC."""
    source: str
    """What it was made from."""
    columns: Mapping[str, ColumnProfile]
    outputs: Mapping[str, ColumnProfile]
    groups: Mapping[str, GroupProfile] = field(default_factory=dict)
    rank_error: float = 0.0
    """Quantiles are right to this share of the rows; 0 where every value was kept."""

    def mismatches(self, model: str, version: int, views: Mapping[str, int], columns: Mapping[str, str]) -> list[str]:
        """Why this profile does not fit a model; empty when it does.

        `views` has the fingerprints of the serving revisions, `columns` the dtypes of the columns that the model reads.
        """
        wrong = []
        if (self.model, self.version) != (model, version):
            wrong.append(f"it is of {self.model}/{self.version}, not of {model}/{version}")
        for ref, fingerprint in views.items():
            known = self.views.get(ref)
            if known is None:
                wrong.append(f"it knows nothing of the view {ref} (it knows: {', '.join(self.views) or 'none'})")
            elif known != fingerprint:
                wrong.append(f"it was made with the revision {known:08x} of {ref}, the catalogue has {fingerprint:08x}")
        missing = sorted(columns.keys() - self.columns.keys())
        if missing:
            wrong.append(f"it has no column {', '.join(missing)}")
        both = [name for name in columns if name in self.columns and self.columns[name].dtype != columns[name]]
        return wrong + [
            f"its column {name} is {self.columns[name].dtype}, the model's is {columns[name]}" for name in both
        ]

    def to_json(self) -> str:
        """The file's text: one line a column, so that a difference can be read."""
        head = {
            "schema": SCHEMA,
            "model": self.model,
            "version": self.version,
            "manifest_hash": self.manifest_hash,
            "views": {ref: f"{fingerprint:08x}" for ref, fingerprint in self.views.items()},
            "rows": self.rows,
            "created": self.created,
            "source": self.source,
            "rank_error": self.rank_error,
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()]
        lines.append(_section("columns", {name: _plain(column) for name, column in self.columns.items()}))
        lines.append(_section("outputs", {name: _plain(column) for name, column in self.outputs.items()}))
        lines.append(_section("groups", {name: _plain_group(group) for name, group in self.groups.items()}))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, file: str = FILE) -> "Profile":
        """Read what `to_json` wrote. Raises `ProfileError`, naming the place in the file."""
        try:
            content = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{file} is not JSON ({error}); write it again with `headrace profile`") from error
        return _Reader(file).profile(content)

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a file. Raises `ProfileError`; a file that is not there is one as well."""
        try:
            if path.stat().st_size > BYTES_MAX:
                raise ProfileError(f"{path} is larger than {BYTES_MAX} bytes, so it is no profile")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ProfileError(f"{path} is not UTF-8; write it again with `headrace profile`") from error
        return cls.from_json(text, str(path))


def category(value: object) -> str:
    """The name of a value in `ColumnProfile.categories`: a string as it is, `True`, `7` or `0.5` for others."""
    return value if isinstance(value, str) else repr(value)


def _section(name: str, entries: Mapping[str, object]) -> str:
    if not entries:
        return f'  "{name}": {{}}'
    lines = [f"    {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in entries.items()]
    return f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }"


def _plain(column: ColumnProfile) -> dict[str, object]:
    """What is there, without what is as it is by default."""
    plain: dict[str, object] = {
        "dtype": column.dtype,
        "measure": column.measure,
        "count": column.count,
        "nulls": column.nulls,
        "nans": column.nans,
        "infinities": column.infinities,
    }
    if column.edges:
        plain |= {"mean": column.mean, "std": column.std, "min": column.min, "max": column.max}
        plain |= {"edges": list(column.edges), "shares": list(column.shares)}
        plain["tails"] = {repr(at): value for at, value in column.tails.items()}
    if column.categories is not None:
        plain |= {"categories": dict(column.categories), "other": column.other}
    if column.means:
        plain["means"] = list(column.means)
    return plain


def _plain_group(group: GroupProfile) -> dict[str, object]:
    return {
        "columns": list(group.columns),
        "count": group.count,
        "mean": list(group.mean),
        "covariance": [list(row) for row in group.covariance],
    }


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


class _Reader:
    """Reads the values of a file one by one; knows where it is, for the message."""

    def __init__(self, file: str) -> None:
        self.file = file

    def profile(self, content: object) -> Profile:
        top = self.mapping(content, "")
        if "schema" not in top:
            raise self.wrong("schema", "is missing: this is no profile")
        if top["schema"] != SCHEMA:
            raise self.wrong("schema", f"is {top['schema']!r}, this version reads {SCHEMA}")
        self.exact(
            top,
            "",
            ("schema", "model", "version", "manifest_hash", "views", "rows", "created", "source", "rank_error"),
            ("columns", "outputs", "groups"),
        )
        return Profile(
            model=self.text(top["model"], "model"),
            version=self.whole(top["version"], "version"),
            manifest_hash=self.text(top["manifest_hash"], "manifest_hash"),
            views=self.each(top["views"], "views", self.fingerprint),
            rows=self.whole(top["rows"], "rows"),
            created=self.text(top["created"], "created"),
            source=self.text(top["source"], "source"),
            columns=self.each(top["columns"], "columns", self.column),
            outputs=self.each(top["outputs"], "outputs", self.column),
            groups=self.each(top["groups"], "groups", self.group),
            rank_error=self.number(top["rank_error"], "rank_error"),
        )

    def column(self, content: object, where: str) -> ColumnProfile:
        given = self.mapping(content, where)
        required = ("dtype", "measure", "count", "nulls", "nans", "infinities")
        numbers = ("mean", "std", "min", "max", "edges", "shares", "tails")
        has_numbers, has_categories = "edges" in given, "categories" in given
        wanted = required + (numbers if has_numbers else ()) + (("categories", "other") if has_categories else ())
        self.exact(given, where, wanted, ("means",) if "means" in given else ())
        if given["measure"] not in {"value", "norm", "category"}:
            raise self.wrong(f"{where}.measure", "has to be value, norm or category")
        counts = [self.whole(given[name], f"{where}.{name}") for name in required[2:]]
        if sum(counts[1:]) > counts[0]:
            raise self.wrong(where, "has more nulls, NaN and infinities than rows")
        column: dict[str, Any] = {}
        if has_numbers:
            column |= self.numbers(given, where)
        if has_categories:
            column["categories"] = self.each(given["categories"], f"{where}.categories", self.share)
            column["other"] = self.share(given["other"], f"{where}.other")
            self.whole_share((*column["categories"].values(), column["other"]), f"{where}.categories")
        if "means" in given:
            column["means"] = self.row(given["means"], f"{where}.means")
        column |= dict(zip(required[2:], counts, strict=True))
        return ColumnProfile(self.text(given["dtype"], f"{where}.dtype"), cast("Measure", given["measure"]), **column)

    def numbers(self, given: Mapping[str, object], where: str) -> dict[str, Any]:
        edges = self.row(given["edges"], f"{where}.edges", BINS + 1)
        if any(left > right for left, right in pairwise(edges)):
            raise self.wrong(f"{where}.edges", "are not in order")
        shares = self.row(given["shares"], f"{where}.shares", BINS)
        self.whole_share(shares, f"{where}.shares")
        low, high = (self.number(given[name], f"{where}.{name}") for name in ("min", "max"))
        if low != edges[0] or high != edges[-1]:
            raise self.wrong(f"{where}.edges", "do not begin at min and end at max")
        mean, std = given["mean"], given["std"]
        tails = {}
        for at, value in self.mapping(given["tails"], f"{where}.tails").items():
            try:
                tails[float(at)] = self.number(value, f"{where}.tails.{at}")
            except ValueError:
                raise self.wrong(f"{where}.tails", f"has {at!r}, which is no quantile") from None
        return {
            "mean": None if mean is None else self.number(mean, f"{where}.mean"),
            "std": None if std is None else self.number(std, f"{where}.std"),
            "min": low,
            "max": high,
            "edges": edges,
            "shares": shares,
            "tails": tails,
        }

    def group(self, content: object, where: str) -> GroupProfile:
        given = self.mapping(content, where)
        self.exact(given, where, ("columns", "count", "mean", "covariance"))
        names = tuple(
            self.text(name, f"{where}.columns[{index}]")
            for index, name in enumerate(self.sequence(given["columns"], f"{where}.columns"))
        )
        mean = self.row(given["mean"], f"{where}.mean", len(names))
        rows = self.sequence(given["covariance"], f"{where}.covariance", len(names))
        covariance = tuple(self.row(row, f"{where}.covariance[{index}]", len(names)) for index, row in enumerate(rows))
        return GroupProfile(names, self.whole(given["count"], f"{where}.count"), mean, covariance)

    def wrong(self, where: str, message: str) -> ProfileError:
        place = f"{self.file}: {where.lstrip('.')}" if where.lstrip(".") else self.file
        return ProfileError(f"{place} {message}")

    def exact(self, given: Mapping[str, object], where: str, *names: Sequence[str]) -> None:
        wanted = {name for some in names for name in some}
        for name in wanted - given.keys():
            raise self.wrong(f"{where}.{name}", "is missing; write the profile again with `headrace profile`")
        for name in given.keys() - wanted:
            raise self.wrong(f"{where}.{name}", f"is not known; there are: {', '.join(sorted(wanted))}")

    def mapping(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, "has to be an object of JSON")
        return value

    def sequence(self, value: object, where: str, length: int | None = None) -> list[Any]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise self.wrong(where, "has to be a list" + ("" if length is None else f" of {length}"))
        return value

    def row(self, value: object, where: str, length: int | None = None) -> tuple[float, ...]:
        return tuple(self.number(one, f"{where}[{i}]") for i, one in enumerate(self.sequence(value, where, length)))

    def each(self, value: object, where: str, read: Callable[[object, str], Any]) -> Mapping[str, Any]:
        entries = self.mapping(value, where)
        return {name: read(one, f"{where}.{name}") for name, one in entries.items()}

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(where, f"has to be a text, not {value!r}")
        return value

    def whole(self, value: object, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(where, f"has to be a whole number, not {value!r}")
        return value

    def number(self, value: object, where: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(where, f"has to be a number, not {value!r}")
        return float(value)

    def share(self, value: object, where: str) -> float:
        number = self.number(value, where)
        if not 0 <= number <= 1 + _SHARES_TOLERANCE:
            raise self.wrong(where, f"has to be a share between 0 and 1, not {value!r}")
        return number

    def whole_share(self, shares: Sequence[float], where: str) -> None:
        # A column without any value has categories without any share.
        if shares and abs(sum(shares) - 1) > _SHARES_TOLERANCE and any(shares):
            raise self.wrong(where, f"has shares that add up to {sum(shares):g}, not to 1")

    def fingerprint(self, value: object, where: str) -> int:
        try:
            return int(self.text(value, where), 16)
        except ValueError:
            raise self.wrong(where, f"has to be a fingerprint in hexadecimal, not {value!r}") from None

"""What can go wrong with features, grouped by whose fault it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class FeatureError(Exception):
    """The root of every error that this library raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file. `line` counts from 1; 0 where no line is to blame."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class ConfigError(FeatureError):
    """A file is not what it should be. Holds every problem that was found, not just the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnknownView(FeatureError, LookupError):
    """The caller asks for a view that the catalogue has not."""

    def __init__(self, ref: str, existing: Iterable[str]) -> None:
        self.ref = ref
        self.existing = tuple(sorted(existing))
        super().__init__(f"no view {ref!r}; there are: {', '.join(self.existing) or 'none'}")


class InvalidId(FeatureError, ValueError):
    """The caller's id cannot be an id of this entity."""

    def __init__(self, view: str, position: int, why: str) -> None:
        self.view = view
        self.position = position
        self.why = why
        super().__init__(f"{view}: id at position {position}: {why}")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be written. `row` counts from 0; `column` is empty where no column is to blame."""

    row: int
    column: str
    why: str

    def __str__(self) -> str:
        return f"row {self.row}, {self.column}: {self.why}" if self.column else f"row {self.row}: {self.why}"


class InvalidTable(FeatureError, ValueError):
    """The caller's table cannot be written; nothing of it was.

    `problems` are about whole columns. `bad_rows` are the first bad rows, `bad_rows_total` how many there are.
    """

    def __init__(self, view: str, problems: Sequence[str], bad_rows: Sequence[BadRow] = (), total: int = 0) -> None:
        self.view = view
        self.problems = tuple(problems)
        self.bad_rows = tuple(bad_rows)
        self.bad_rows_total = total
        said = [*self.problems, *map(str, self.bad_rows)]
        if total > len(self.bad_rows):
            said.append(f"and {total - len(self.bad_rows)} more bad rows")
        super().__init__(f"{view}: " + "; ".join(said))

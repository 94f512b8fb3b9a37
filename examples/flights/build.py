"""Write the views' rows as Parquet files: `python -m examples.flights.build --out rows`, one file per view.

`headrace load --view plane_stats@1 --from rows/plane_stats.parquet` puts one into the store. `plane_stats@2.parquet` is
of a version that an experiment tries. Two more files are what the row of a plane that was never loaded is computed
from: `plane_arrivals.parquet`, sorted by plane, so that a query about a few planes reads a few pieces of it, and
`plane_registry.parquet`.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from examples.flights.features import AS_OF_MIN, VIEWS, Features

WINDOWED = "plane_stats@2"

ROW_GROUP_ROWS = 8_192
"""Some 80 planes: the least that a query about one has to read."""


def write(features: Features, folder: Path, as_of_min: int = AS_OF_MIN) -> dict[str, int]:
    """Write `<view>.parquet` for every view; return the number of rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for view in VIEWS:
        table = features.table(view, as_of_min)
        pq.write_table(table, folder / f"{view}.parquet")
        rows[view] = table.num_rows
    windowed = features.windowed(as_of_min)
    pq.write_table(windowed, folder / f"{WINDOWED}.parquet")
    rows[WINDOWED] = windowed.num_rows
    write_sources(features, folder, as_of_min)
    return rows


def write_sources(features: Features, folder: Path, as_of_min: int = AS_OF_MIN) -> None:
    """Write the files that `plane_stats` is computed from, with what was known at the same instant."""
    arrivals = features.arrivals(as_of_min).sort_by("tailnum")
    pq.write_table(arrivals, folder / "plane_arrivals.parquet", row_group_size=ROW_GROUP_ROWS)
    pq.write_table(features.registry(), folder / "plane_registry.parquet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build from the installed data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--as-of",
        type=datetime.fromisoformat,
        default=datetime.fromtimestamp(AS_OF_MIN * 60, UTC),
        help="count what was known before this instant (default: %(default)s, the end of September in New York)",
    )
    options = parser.parse_args(arguments)
    as_of = options.as_of if options.as_of.tzinfo else options.as_of.replace(tzinfo=UTC)
    for view, rows in write(Features.read(), options.out, int(as_of.timestamp()) // 60).items():
        print(f"{options.out / view}.parquet: {rows:,} rows")


if __name__ == "__main__":
    main()

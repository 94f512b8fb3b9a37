"""Write what the model was trained on: `python -m examples.flights.training_set --out train.parquet`.

Columns have the names of the manifest, and nulls where nothing was known. `headrace profile` makes the reference
profile of the model from it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.flights.data import read_flights
from examples.flights.features import CATALOGUE, Features, context_columns
from examples.flights.train import in_training
from featureclient.schema import Catalogue


def table(features: Features) -> pa.Table:
    """Return the flights of January to September, each as of its departure."""
    flights = read_flights()
    flights = flights.take(in_training(flights))
    catalogue = Catalogue.load(CATALOGUE)
    dtypes = {
        f"{view.name}.{column.name}": column.dtype.numpy for view in catalogue.views.values() for column in view.columns
    }
    arrays = {}
    for name, values in features.known(flights).items():
        null = np.isnan(values)
        arrays[name] = pa.array(np.where(null, 0, values).astype(dtypes[name]), mask=null)
    return pa.table({**arrays, **{name: pa.array(values) for name, values in context_columns(flights).items()}})


def main(arguments: Sequence[str] | None = None) -> None:
    """Build from the installed data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file")
    options = parser.parse_args(arguments)
    made = table(Features.read())
    pq.write_table(made, options.out)
    print(f"{options.out}: {made.num_rows:,} rows")


if __name__ == "__main__":
    main()

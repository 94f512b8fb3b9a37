"""Train with what came after: `python -m examples.flights.retrain --set SET.parquet --out FOLDER`.

The set is one of `headrace dataset build` or `backfill`, with a label `late`. Its rows before `--test-from` join the
training months of `examples.flights.train`; those after it are the test, of the old version and of the new one.
"""

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from examples.flights.data import read_flights
from examples.flights.features import Features
from examples.flights.metrics import auc, log_loss
from examples.flights.train import COLUMNS, MODELS, NAME, VERSION, export, fit, in_training, matrix, score


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare on the test rows, write; end with an error, and write nothing, when the new one is not better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="served", type=Path, required=True, help="the training set")
    parser.add_argument("--test-from", type=datetime.fromisoformat, default="2013-12-01T05:00", help="UTC")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the new version")
    options = parser.parse_args(arguments)

    served = pq.read_table(options.served)
    rows = np.stack([served[f"f.{name}"].to_numpy() for name in COLUMNS], axis=1).astype(np.float32)
    late = served["label.late"].to_numpy()
    train = served["time"].to_numpy() < np.datetime64(options.test_from)

    flights = read_flights()
    first = flights.take(in_training(flights))
    inputs = np.concatenate([matrix(Features.read(flights), first), rows[train]])
    new = export(fit(inputs, np.concatenate([first.late, late[train]]), COLUMNS), len(COLUMNS))
    old = (MODELS / NAME / str(VERSION) / "model.onnx").read_bytes()
    losses = []
    for name, graph in {"before": old, "after": new}.items():
        scores = score(graph, rows[~train])
        losses.append(log_loss(late[~train], scores))
        print(f"{name:8} AUC {auc(late[~train], scores):.4f}, log loss {losses[-1]:.4f} on {len(scores):,} flights")
    if losses[1] >= losses[0]:
        raise SystemExit("the new model is not better, so nothing was written")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "model.onnx").write_bytes(new)
    print(f"wrote {options.out / 'model.onnx'}, trained on {len(inputs):,} flights")


if __name__ == "__main__":
    main()

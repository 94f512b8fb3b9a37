"""A profile of what was served: the journal's columns under the manifest's names, nulls and versions included."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.training.tables import TableError, open_journal
from tests.journaling import NOW_MS, Model, model_of, seen, served_of

NAMES = ["u.age", "u.name", "u.taste", "i.price", "hour"]


@pytest.fixture
def model() -> Model:
    columns = {"age": "float32", "name": "string[8]", "taste": "float32[3]"}
    return model_of(columns, context={"hour": "float32"})


def written(folder: Path, model: Model, *at_ms: int) -> None:
    recorder = Recorder(model.schema, Redaction())
    path = folder / "segments" / model.schema.model / f"1-default-{model.schema.hash}"
    path.mkdir(parents=True)
    for number, moment in enumerate(at_ms):
        batch = recorder.record([served_of(model, [2, 3], seed=number, at_ms=moment)])
        with (
            pa.OSFile(str(path / f"{moment}-1-{number}.arrows"), "wb") as file,
            pa.ipc.new_stream(file, batch.schema) as out,
        ):
            out.write_batch(batch)


def test_the_rows_of_a_window(tmp_path: Path, model: Model) -> None:
    written(tmp_path, model, NOW_MS, NOW_MS + 60_000, NOW_MS + 120_000)
    since = datetime.fromtimestamp((NOW_MS + 60_000) / 1000, UTC)
    until = datetime.fromtimestamp((NOW_MS + 120_000) / 1000, UTC)
    table = open_journal(tmp_path, model.plan, 1, since, until)
    assert set(table.columns) == set(NAMES)
    (batch,) = table.batches(NAMES)
    served = served_of(model, [2, 3], seed=1)
    assert batch.num_rows == 5
    assert batch.schema.names == NAMES
    null = served.assembled.blocks[0]["valid"][:, 0] & 1 == 0
    ages = batch.column("u.age").to_numpy(zero_copy_only=False)
    assert batch.column("u.age").is_null().to_numpy(zero_copy_only=False).tolist() == null.tolist()
    np.testing.assert_array_equal(ages[~null], seen(model, served, "u.age").ravel()[~null])


def test_another_version_and_another_model_are_left_out(tmp_path: Path, model: Model) -> None:
    written(tmp_path, model, NOW_MS)
    assert list(open_journal(tmp_path, model.plan, 2).batches(NAMES)) == []
    with pytest.raises(TableError, match="has nothing of the model other"):
        open_journal(tmp_path, model_of({"age": "float32"}, name="other").plan, 1)


def test_rows_of_another_revision_are_refused(tmp_path: Path, model: Model) -> None:
    written(tmp_path, model, NOW_MS)
    changed = model_of({"age": "float64", "name": "string[8]", "taste": "float32[3]"}, context={"hour": "float32"})
    with pytest.raises(TableError, match="another revision of stats@1"):
        list(open_journal(tmp_path, changed.plan, 1).batches(NAMES))

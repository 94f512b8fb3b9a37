"""What is read back of the journal is what was offered, byte for byte, whatever the model's columns are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal.policy import Redaction
from gateway.journal.reader import batches
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from tests.journaling import Model, model_of, seen, served_of

_NUMBERS = ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]
DTYPES = st.one_of(
    st.sampled_from([*_NUMBERS, "bool", "timestamp"]),
    st.builds("{}[{}]".format, st.sampled_from(_NUMBERS), st.integers(1, 5)),
    st.builds("string[{}]".format, st.integers(1, 12)),
)


@given(
    dtypes=st.lists(DTYPES, min_size=1, max_size=12),
    runs=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_every_value_comes_back(
    tmp_path_factory: Any, dtypes: Sequence[str], runs: Sequence[Sequence[int]], seed: int
) -> None:
    model = model_of(
        {f"c{number}": dtype for number, dtype in enumerate(dtypes)}, context={"hour": "float32", "word": "string[20]"}
    )
    served = [served_of(model, sizes, seed=seed + number, first=10 * number) for number, sizes in enumerate(runs)]
    folder: Path = tmp_path_factory.mktemp("journal")
    recorder = Recorder(model.schema, Redaction())
    file = SegmentFile(folder, "1-2-3", recorder.arrow, 0.0)
    file.write(recorder.record(served))
    file.close()
    table = pa.Table.from_batches(list(batches(file.path)))
    pq.write_table(table, folder / "same.parquet")
    for read in (table, pq.read_table(folder / "same.parquet")):
        assert read.schema.equals(recorder.arrow)
        assert read.schema.metadata == recorder.arrow.metadata
        _check(model, served, read.combine_chunks())


def _check(model: Model, served: Sequence[Any], table: pa.Table) -> None:
    rows = [row for one in served for request in one.requests for row in range(request.rows)]
    assert table["row"].to_pylist() == rows
    assert table["rows"].to_pylist() == [r.rows for one in served for r in one.requests for _ in range(r.rows)]
    assert table["request_id"].to_pylist() == [
        r.request_id for one in served for r in one.requests for _ in range(r.rows)
    ]
    counters = [
        number
        for one in served
        for r, number in zip(one.requests, one.prediction_ids[1], strict=True)
        for _ in range(r.rows)
    ]
    assert table["prediction_id"].to_pylist() == [b"prefix__" + int(number).to_bytes(8, "big") for number in counters]
    assert table["entity.user"].to_pylist() == [user for one in served for r in one.requests for user in r.ids[0]]
    assert table["entity.item"].to_pylist() == [
        item for one in served for r in one.requests for item in (r.ids[1] * r.rows if len(r.ids[1]) == 1 else r.ids[1])
    ]
    for index, binding in enumerate(model.plan.bindings):
        valid = np.concatenate([one.assembled.blocks[index]["valid"] for one in served])
        there = np.unpackbits(valid, axis=1, bitorder="little")[:, : len(binding.view.columns)]
        nulls = [bytes(len(valid[0])) if one is None else one for one in table[f"null.{binding.alias}"].to_pylist()]
        found = np.unpackbits(
            np.frombuffer(b"".join(nulls), np.uint8).reshape(len(valid), -1), axis=1, bitorder="little"
        )[:, : len(binding.view.columns)]
        assert np.array_equal(found, 1 - there)
    for column in model.schema.columns:
        found = table[f"f.{column.name}"].chunk(0)
        if column.kind == "stored":
            wanted = np.concatenate([seen(model, one, column.name) for one in served])
        else:
            wanted = np.concatenate([one.assembled.context[column.where.part] for one in served])
        if column.element == "string":
            texts = [one.decode() if isinstance(one, bytes) else one for one in wanted.ravel().tolist()]
            assert found.to_pylist() == texts
        else:
            flat = found.values if column.dtype.length else found
            assert flat.to_numpy(zero_copy_only=False).tobytes() == np.ascontiguousarray(wanted).tobytes()
    outputs = np.concatenate([one.outputs[0] for one in served])
    assert table["out.score"].chunk(0).to_numpy().tobytes() == outputs.tobytes()

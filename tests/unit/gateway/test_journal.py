"""The journal of a process: bounds, counts, rotation, sampling, redaction, failures, commits with their deadlines."""

import asyncio
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gateway.journal import reader
from gateway.journal.cloudevents_sink import events
from gateway.journal.journal import FAILURES_PER_S, Journal
from gateway.journal.options import JournalOptions
from gateway.journal.redaction import digest
from gateway.journal.sampling import kept, keys_of
from gateway.journal.schema import schema_of
from gateway.journal.sinks import CloudEventsSinkOptions
from gateway.plan.tensors import TensorPlan
from gateway.records.errors import DeadlinePassed, HeadraceError, Overloaded, Unavailable
from gateway.records.request import Asked
from gateway.records.served import Failed
from gateway.records.signature import Signature, TensorSpec
from gateway.records.violations import CHANGED, FALLBACK, OK
from tests.journaling import NOW_MS, model_of, served_of
from tests.waiting import soon

MODEL = model_of({"age": "float32", "email": "string[20]", "visits": "int32", "taste": "float32[2]"})


def options(folder: Path, **changed: Any) -> JournalOptions:
    return JournalOptions(**{"enabled": True, "path": folder, "interval_ms": 10, "free_bytes_min": 0, **changed})


def read(folder: Path) -> pa.Table:
    return pa.Table.from_batches([batch for path in reader.segments(folder) for batch in reader.batches(path)])


async def keep(folder: Path, runs: Sequence[Any], **changed: Any) -> Journal:
    async with Journal(options(folder, **changed)) as journal:
        for run in runs:
            assert journal.offer(MODEL.schema, run)
    return journal


async def test_what_is_offered_is_in_a_finished_segment_after_the_end(tmp_path: Path) -> None:
    journal = await keep(tmp_path, [served_of(MODEL, [1, 3], first=2 * n, seed=n) for n in range(20)])
    table = read(tmp_path)
    assert table.num_rows == 80
    assert len(set(table["prediction_id"].to_pylist())) == 40
    (path,) = reader.segments(tmp_path)
    assert path.parent.name == f"1-default-{MODEL.schema.hash}"
    with reader.Segment(path) as segment:
        assert segment.schema.described() == MODEL.schema.described()
        assert len([*segment.read_from()]) >= 1
        assert segment.tail == (True, 0, "")
    assert journal.state().rows == 80
    assert journal.state().pending_bytes == 0


async def test_stages_and_ages(tmp_path: Path) -> None:
    served = served_of(MODEL, [2, 1])
    await keep(tmp_path, [served])
    row = read(tmp_path).to_pylist()[2]
    assert row["wait_us"] == pytest.approx(999, rel=1e-3)
    assert [row[name] for name in ("assemble_us", "run_us", "reply_us")] == pytest.approx([1000, 2000, 500], rel=1e-3)
    assert row["age_ms.u"] == NOW_MS - served.assembled.events_ms[0][2]
    assert row["time"].timestamp() * 1000 == NOW_MS


async def test_beyond_its_bytes_the_buffer_drops_and_counts(tmp_path: Path) -> None:
    served = served_of(MODEL, [1] * 10)
    async with Journal(options(tmp_path, buffer_bytes_max=40_000, interval_ms=60_000)) as journal:
        taken = [journal.offer(MODEL.schema, served) for _ in range(20)]
        pending = journal.state().pending_bytes
    assert 0 < sum(taken) < 20
    assert taken == sorted(taken, reverse=True)
    assert 0 < pending <= 40_000
    assert journal.state().dropped["buffer"] == 10 * (20 - sum(taken))
    assert read(tmp_path).num_rows == 10 * sum(taken)


async def test_a_closed_journal_drops_and_counts(tmp_path: Path) -> None:
    journal = await keep(tmp_path, [])
    assert not journal.offer(MODEL.schema, served_of(MODEL, [3]))
    assert journal.state().dropped["closed"] == 3


async def test_segments_are_closed_by_size_and_by_age_without_traffic(tmp_path: Path) -> None:
    async with Journal(options(tmp_path, segment_bytes_max=1)) as journal:
        for n in range(3):
            journal.offer(MODEL.schema, served_of(MODEL, [1], first=n))
            await soon(lambda n=n: journal.state().rows == n + 1, 5)  # type: ignore[misc]  # bound as it is
    assert len(reader.segments(tmp_path)) == 3
    async with Journal(options(tmp_path / "old", segment_age_max_s=0.05)) as journal:
        journal.offer(MODEL.schema, served_of(MODEL, [1]))
        await soon(lambda: bool(reader.segments(tmp_path / "old")), 5)
        (path,) = reader.segments(tmp_path / "old")
        await soon(lambda: path.read_bytes().endswith(reader.END), 5)


async def test_one_run_that_is_not_as_its_schema_says_is_dropped_alone(tmp_path: Path) -> None:
    good = [served_of(MODEL, [2], first=n) for n in range(5)]
    bad = served_of(MODEL, [2], first=9)._replace(outputs=[np.zeros((7, 1), np.float32)])
    journal = await keep(tmp_path, [*good[:2], bad, *good[2:]], interval_ms=60_000)
    assert read(tmp_path).num_rows == 10
    assert journal.state().dropped["failed"] == 7
    assert "cannot be recorded" in journal.state().error


async def test_a_clock_that_goes_backwards_changes_nothing_but_the_times(tmp_path: Path) -> None:
    walls: Iterator[float] = iter([2e9, 1e9, 1e9, 5e8] + [4e8] * 1000)
    async with Journal(options(tmp_path, segment_bytes_max=1), wall_s=lambda: next(walls)) as journal:
        for n, at_ms in enumerate([NOW_MS, NOW_MS - 86_400_000, 0]):
            journal.offer(MODEL.schema, served_of(MODEL, [1], first=n, at_ms=at_ms))
            await soon(lambda n=n: journal.state().rows == n + 1, 5)  # type: ignore[misc]  # bound as it is
    assert sorted(read(tmp_path)["request_id"].to_pylist()) == ["r0", "r1", "r2"]


def test_sampling_keeps_all_rows_of_an_entity_or_none_and_about_the_share() -> None:
    ids = [f"user-{n}" for n in range(20_000)]
    tenth, half = kept(keys_of(ids), 0.1), kept(keys_of(ids), 0.5)
    assert abs(tenth.mean() - 0.1) < 0.01
    assert abs(half.mean() - 0.5) < 0.02
    assert (half | ~tenth).all()
    numbers = kept(keys_of(list(range(-10_000, 10_000))), 0.1)
    assert abs(numbers.mean() - 0.1) < 0.01
    # The same in every process, for ever.
    assert keys_of(["user-1", "ü"]).tolist() == [
        int(one) for one in keys_of(["user-1"]).tolist() + keys_of(["ü"]).tolist()
    ]
    assert keys_of([0]).tolist() == [0xE220A8397B1DCDAF]


async def test_what_is_sampled_goes_by_the_entity_that_is_named(tmp_path: Path) -> None:
    runs = [served_of(MODEL, [4] * 50, first=50 * n, seed=n) for n in range(10)]
    await keep(tmp_path, runs, sample_share=0.3, sample_by="user")
    found = read(tmp_path)["entity.user"].to_pylist()
    every = [user for run in runs for request in run.requests for user in request.ids[0]]
    chosen = kept(keys_of(every), 0.3)
    assert found == [user for user, is_chosen in zip(every, chosen, strict=True) if is_chosen]
    assert 0.2 < len(found) / len(every) < 0.4


async def test_personal_data_is_not_in_any_file(tmp_path: Path) -> None:
    salt = "a secret that is long"
    pii = {"user": "hash", "email": "mask", "u.visits": "drop", "taste": "hash"}
    served = served_of(MODEL, [2, 1])
    async with Journal(options(tmp_path, pii=pii, pii_salt=salt)) as journal:
        journal.offer(MODEL.schema, served)
        failed = Failed(NOW_MS, "ranker", "INVALID_ARGUMENT", "id 'u0.0' is bad", "r", served.requests[0])
        journal.fail(failed, MODEL.schema)
    table = read(tmp_path)
    users = [user for request in served.requests for user in request.ids[0]]
    assert table["entity.user"].to_pylist() == [digest(user, salt.encode()) for user in users]
    assert set(table["f.u.email"].to_pylist()) == {"***"}
    assert "f.u.visits" not in table.column_names
    assert len(set(table["f.u.taste"].to_pylist())) == 3
    assert table["f.u.age"].type == pa.float32()
    (failures,) = reader.failures(tmp_path)
    (row,) = pa.Table.from_batches([*reader.batches(failures)]).to_pylist()
    assert row["message"] is None
    assert json.loads(row["entities"])["user"] == [digest(user, salt.encode()) for user in users[:2]]
    for path in [*reader.segments(tmp_path), failures]:
        assert not any(user.encode() in path.read_bytes() for user in users)


async def test_failures_are_kept_with_their_ids(tmp_path: Path) -> None:
    served = served_of(MODEL, [2])
    async with Journal(options(tmp_path)) as journal:
        failed = Failed(NOW_MS, "ranker", "INTERNAL", "no", "mine", served.requests[0], 3, "default")
        journal.fail(failed, MODEL.schema)
        journal.fail(failed)
        journal.fail(Failed(NOW_MS, "", "NOT_FOUND", "no model", "", None))
    (path,) = reader.failures(tmp_path)
    rows = pa.Table.from_batches([*reader.batches(path)]).to_pylist()
    assert [(row["model"], row["version"], row["variant"], row["code"], row["request_id"]) for row in rows] == [
        ("ranker", 3, "default", "INTERNAL", "mine"),
        ("ranker", 3, "default", "INTERNAL", "mine"),
        ("", None, None, "NOT_FOUND", None),
    ]
    assert json.loads(rows[0]["entities"]) == {"user": ["u0.0", "u0.1"], "item": [0, 1]}
    # What the ids are called is not guessed.
    assert rows[1]["entities"] is None
    assert journal.state().failures == 3


async def test_ids_of_failures_go_by_the_version_that_they_were_bound_to(tmp_path: Path) -> None:
    """The views of the next version of a model stand in another order."""
    views = {"i": {"view": "items@1"}, "u": {"view": "stats@1"}}
    second = model_of({"age": "float32"}, views=views)
    request = served_of(MODEL, [1]).requests[0]._replace(ids=(("alice@example.org",), (7,)))
    other = served_of(second, [1]).requests[0]._replace(ids=((8,), ("bob@example.org",)))
    pii = {"user": "hash"}
    async with Journal(options(tmp_path, pii=pii, pii_salt="a secret that is long")) as journal:
        for _ in range(2):
            journal.fail(Failed(NOW_MS, "ranker", "INTERNAL", "no", "", request), MODEL.schema)
            journal.fail(Failed(NOW_MS, "ranker", "INTERNAL", "no", "", other), second.schema)
    (path,) = reader.failures(tmp_path)
    assert b"example.org" not in path.read_bytes()
    rows = pa.Table.from_batches([*reader.batches(path)]).to_pylist()
    hashed = [digest(name, b"a secret that is long") for name in ("alice@example.org", "bob@example.org")]
    assert [json.loads(row["entities"]) for row in rows] == [
        {"user": [hashed[0]], "item": [7]},
        {"user": [hashed[1]], "item": [8]},
    ] * 2


async def test_of_a_flood_of_failures_a_share_is_kept(tmp_path: Path) -> None:
    async with Journal(options(tmp_path), monotonic=lambda: 100.0) as journal:
        taken = [journal.fail(Failed(NOW_MS, "", "NOT_FOUND", "no", "", None)) for _ in range(FAILURES_PER_S + 10)]
        assert journal.offer(MODEL.schema, served_of(MODEL, [1]))
    assert sum(taken) == FAILURES_PER_S
    assert journal.state().failures == FAILURES_PER_S
    assert journal.state().dropped["failures"] == 10


async def test_a_model_that_cannot_be_recorded_harms_no_other(tmp_path: Path) -> None:
    wrong = replace(MODEL.schema, model="wrong", outputs=(TensorSpec("score", "complex64", (None, 1)),))
    told = Told()
    async with Journal(options(tmp_path, interval_ms=60_000)) as journal:
        journal.commit(wrong, served_of(MODEL, [2]), told)
        assert journal.offer(wrong, served_of(MODEL, [3]))
        assert journal.offer(MODEL.schema, served_of(MODEL, [4], first=9))
    assert read(tmp_path).num_rows == 4
    assert journal.state().dropped["failed"] == 5
    assert journal.state().restarts == 0
    await asyncio.sleep(0)
    assert isinstance(told.by_number[0], Unavailable)


async def test_whatever_breaks_the_writer_what_it_had_taken_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Journal(options(tmp_path)) as journal:
        monkeypatch.setattr(journal._writer._streams, "write", lambda *_: 1 / 0)
        journal.offer(MODEL.schema, served_of(MODEL, [3]))
        await soon(lambda: journal.state().dropped.get("failed") == 3, 5)
        monkeypatch.undo()
        journal.offer(MODEL.schema, served_of(MODEL, [1]))
        await soon(lambda: journal.state().rows == 1, 5)
    assert journal.state().restarts == 1


async def test_the_last_runs_of_a_model_that_is_gone_leave_nothing_behind(tmp_path: Path) -> None:
    async with Journal(options(tmp_path)) as journal:
        for n in range(5):
            journal.offer(MODEL.schema, served_of(MODEL, [1], first=n))
        journal.forget(MODEL.schema)
        await soon(lambda: journal.state().rows == 5, 5)
        await soon(lambda: not journal._writer._recorders, 5)


async def test_texts_count_and_so_does_what_came_over_the_wire_while_it_waits_for_the_disk(tmp_path: Path) -> None:
    class Called:
        cancelled = False
        payload = b"x" * 100_000

    model = model_of({"age": "float32"}, context={"note": "string[65536]"})
    served = served_of(model, [1])
    long = np.array(["x" * 60_000], object)
    served = served._replace(assembled=served.assembled._replace(context=(long,)))
    journal = Journal(options(tmp_path))
    journal.hold()
    journal.offer(model.schema, served)
    offered = journal.state().pending_bytes
    assert 60_000 < offered < 100_000
    # With `sync` the request waits too.
    run = served_of(model, [1])
    journal.commit(model.schema, run._replace(requests=[run.requests[0]._replace(caller=Called())]), Told())
    assert journal.state().pending_bytes > offered + 100_000


TENSORS = {
    "a matrix of its own": (Signature((TensorSpec("a", "float32", (3,)),), (TensorSpec("y", "float32", (3,)),)), False),
    "unknown": (Signature((TensorSpec("a", "float32", ()),), (TensorSpec("y", "float32", ()),)), False),
    "free": (Signature((TensorSpec("a", "float32", (None, None, None)),), (TensorSpec("y", "float32", ()),)), True),
}


@pytest.mark.parametrize("name", TENSORS)
async def test_tensors_without_a_fixed_row_are_written_whole(tmp_path: Path, name: str) -> None:
    signature, batched = TENSORS[name]
    plan = TensorPlan("m", signature, batched)
    schema = schema_of("m", 1, plan, signature)
    array = np.arange(3, dtype="f4") if name == "a matrix of its own" else np.arange(24, dtype="f4").reshape(2, 3, 4)
    output = np.arange(3, dtype="f4") if name == "a matrix of its own" else np.arange(14, dtype="f4").reshape(2, 7)
    bound = plan.bind(Asked({}, {"a": array}, {}, (), return_features=False), 10)
    some = served_of(MODEL, [bound.rows])
    request = some.requests[0]._replace(ids=(), context=bound.context, shape=bound.shape, rows=bound.rows)
    run = some._replace(requests=[request], assembled=plan.assemble([request], [], NOW_MS), outputs=[output])
    told = Told()
    async with Journal(options(tmp_path)) as journal:
        journal.commit(schema, run, told)
    await asyncio.sleep(0)
    assert told.by_number == {0: None}
    rows = read(tmp_path).to_pylist()
    wanted = [(array[row], output[row]) for row in range(2)] if batched else [(array, output)]
    assert len(rows) == len(wanted)
    for row, (a, y) in zip(rows, wanted, strict=True):
        assert np.reshape(row["f.a"], row["shape.f.a"]).tolist() == a.tolist()
        assert np.reshape(row["out.y"], row["shape.out.y"]).tolist() == y.tolist()
    (batch,) = read(tmp_path).to_batches()
    asked, given = events(batch, CloudEventsSinkOptions(url="http://localhost/"), "here")
    for tensor, values in ((asked.data["inputs"][0], array), (given.data["outputs"][0], output)):
        assert (tensor["shape"], tensor["data"]) == ([*values.shape], values.ravel().tolist())


async def test_rows_that_are_not_as_wide_as_the_graph_says_are_refused_and_counted(tmp_path: Path) -> None:
    wide = served_of(MODEL, [2])._replace(outputs=[np.zeros((2, 3), np.float32)])
    journal = await keep(tmp_path, [wide, served_of(MODEL, [4], first=5)])
    assert read(tmp_path).num_rows == 4
    assert journal.state().dropped["failed"] == 2


class Broken:
    """What a check found in three rows."""

    columns = ("u.age", "somewhere else", "u.email")
    mask = np.array([[True, False, False], [False, False, False], [True, True, True]])
    verdicts = np.array([CHANGED, OK, FALLBACK], np.uint8)
    changed = ((0, np.array([0, 2]), np.float32([1.5, np.nan])), (2, np.array([2]), np.array(["x"], object)))


async def test_violations_and_what_a_policy_changed(tmp_path: Path) -> None:
    await keep(tmp_path, [served_of(MODEL, [1, 2])._replace(violations=Broken()), served_of(MODEL, [1], first=5)])
    rows = read(tmp_path).to_pylist()
    names = list(MODEL.schema.checked)
    age, email = names.index("u.age"), names.index("u.email")
    assert [row["violations"] for row in rows] == [1, 0, 3, 0]
    assert [row["verdict"] for row in rows] == [CHANGED, OK, FALLBACK, OK]
    bits = [None if row["violated"] is None else int.from_bytes(row["violated"], "little") for row in rows]
    assert bits == [1 << age, None, 1 << age | 1 << email, None]
    assert rows[0]["changed"] == [{"column": age, "raw": 1.5, "text": None}]
    assert rows[1]["changed"] == rows[3]["changed"] == []
    assert math.isnan(rows[2]["changed"][0]["raw"])
    assert rows[2]["changed"][1] == {"column": email, "raw": None, "text": "x"}


async def test_a_whole_number_that_a_double_cannot_hold_is_kept_as_text_too(tmp_path: Path) -> None:
    class Large(Broken):
        changed = ((0, np.array([0, 2]), np.array([2**53 + 1, -(2**63)])),)

    await keep(tmp_path, [served_of(MODEL, [1, 2])._replace(violations=Large())])
    rows = read(tmp_path).to_pylist()
    assert rows[0]["changed"][0] | {"column": 0} == {"column": 0, "raw": 2.0**53, "text": "9007199254740993"}
    assert rows[2]["changed"][0]["text"] == "-9223372036854775808"


class Told:
    """What a commit's callback was told."""

    def __init__(self) -> None:
        self.by_number: dict[int, HeadraceError | None] = {}

    def __call__(self, numbers: Sequence[int], error: HeadraceError | None) -> None:
        for number in numbers:
            assert number not in self.by_number, "told twice"
            self.by_number[number] = error


async def test_a_commit_is_told_when_its_record_can_be_read(tmp_path: Path) -> None:
    async with Journal(options(tmp_path, durability="sync", interval_ms=60_000)) as journal:
        told = [Told() for _ in range(30)]
        for n, one in enumerate(told):
            journal.commit(MODEL.schema, served_of(MODEL, [1, 2], first=2 * n), one)
        await soon(lambda: all(len(one.by_number) == 2 for one in told), 10)
        assert {error for one in told for error in one.by_number.values()} == {None}
        assert read(tmp_path).num_rows == 90
        state = journal.state()
        assert 1 <= state.syncs < 30  # many commits, few syncs
        assert state.commits_waiting == 0


async def test_with_sync_the_names_of_all_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    root = tmp_path / "new"
    told = Told()
    async with Journal(options(root, durability="sync")) as journal:
        journal.commit(MODEL.schema, served_of(MODEL, [1]), told)
        await soon(lambda: bool(told.by_number), 10)
    version = reader.segments(root)[0].parent
    assert {tmp_path, root, root / "segments", version.parent, version} <= {*synced}


async def test_a_deadline_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    # A writer that never comes round: the interval is long, and it is not woken.
    journal = Journal(options(tmp_path, durability="sync", interval_ms=60_000))
    journal.hold()
    served = served_of(MODEL, [1, 1], deadline=time.monotonic() + 0.05)
    patient = served.requests[1]._replace(deadline=float("inf"))
    told = Told()
    journal.commit(MODEL.schema, served._replace(requests=[served.requests[0], patient]), told)
    await soon(lambda: bool(told.by_number), 5)
    assert [*told.by_number] == [0]
    assert isinstance(told.by_number[0], DeadlinePassed)
    async with journal:
        pass
    await asyncio.sleep(0)
    assert told.by_number[1] is None
    assert read(tmp_path).num_rows == 2


async def test_a_commit_without_room_or_journal_is_refused_at_once(tmp_path: Path) -> None:
    told = Told()
    journal = Journal(options(tmp_path, buffer_bytes_max=1))
    journal.commit(MODEL.schema, served_of(MODEL, [1]), told)
    assert isinstance(told.by_number[0], Unavailable)
    async with journal:
        told = Told()
        journal.commit(MODEL.schema, served_of(MODEL, [1]), told)
        assert isinstance(told.by_number[0], Overloaded)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample_share": 0.0}, "sample_share"),
        ({"pii": {"user": "hide"}}, "hide"),
        ({"pii": {"user": "hash"}}, "pii_salt"),
        ({"segment_age_max_s": 0}, "segment_age_max_s"),
        ({"keep_days": -1}, "keep_days"),
        ({"interval_ms": 0}, "interval_ms"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        options(Path("j"), **changed)

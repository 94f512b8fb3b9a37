"""From the journal's files to verdicts, without a second process: reading, counting, sampling, saving."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featureclient.schema import status
from gateway.journal.options import JournalOptions
from gateway.journal.schema import Redaction, arrow_schema
from gateway.journal.segment import SegmentFile
from gateway.monitor.budget import BURST_S, Budget
from gateway.monitor.columns import Counter
from gateway.monitor.frames import DRIFT, FRAME_BYTES_MAX, STATUS, Frame, TooLong, Unpacker, packed
from gateway.monitor.options import MonitorOptions
from gateway.monitor.stream import StreamDrift
from gateway.monitor.supervisor import Supervisor
from gateway.monitor.tail import Tail
from gateway.monitor.worker import Setup, Worker
from gateway.validation.drift import references
from gateway.validation.options import WindowOptions
from gateway.validation.profile import ProfileError
from tests.drifting import START_MS, Columns, batch_of, profile_of, save_profile, schema_of_columns, segment

RANDOM = np.random.default_rng(0)
OPTIONS = MonitorOptions(windows=WindowOptions(rows=4000, panes=4), verdict_s=0.0, cpu_share=1.0)


def drawn(rows: int) -> dict[str, np.ndarray]:
    return {
        "v.age": RANDOM.normal(40, 10, rows).astype(np.float32),
        "count": RANDOM.integers(0, 9, rows).astype(np.int32),
        "wing": RANDOM.normal(size=(rows, 4)).astype(np.float32),
        "carrier": RANDOM.choice(np.array(["AA", "UA", "DL"], object), rows),
        "on": RANDOM.random(rows) < 0.5,
    }


REFERENCE = drawn(20_000)
OUTPUTS: Columns = {"score": RANDOM.random(20_000).astype(np.float32)}
PROFILE = profile_of(REFERENCE, OUTPUTS)
SCHEMA = schema_of_columns(REFERENCE, ["score"])
ARROW = arrow_schema(SCHEMA, Redaction())


def scored(rows: int) -> Columns:
    return {"score": RANDOM.random(rows).astype(np.float32)}


def counter() -> Counter:
    return Counter(SCHEMA, ARROW, references(PROFILE), 500)


def test_every_kind_of_column_is_counted_as_its_reference() -> None:
    columns = drawn(2000)
    stream = StreamDrift(SCHEMA, ARROW, PROFILE, OPTIONS)
    stream.add(batch_of(SCHEMA, columns, scored(2000)))
    windows = stream.settle()
    found = {one.column: one for one in stream.judge(windows[-1]).columns}
    assert found.keys() == {*columns, "out.score"}
    assert {one.verdict for one in found.values()} == {"stable"}
    assert found["v.age"].mean == pytest.approx(float(columns["v.age"].astype(np.float64).mean()))
    norms = np.linalg.norm(columns["wing"].astype(np.float64), axis=1)
    assert found["wing"].mean == pytest.approx(float(norms.mean()))


def test_nulls_and_raw_values_are_what_the_model_did_not_see() -> None:
    columns = drawn(4)
    changed = [[(1, 1000.0)], [], [(1, None)], []]
    nulls = np.array([True, False, False, True])
    batch = batch_of(SCHEMA, columns, scored(4), nulls=nulls, changed=changed)
    counts = counter()
    found = counts.count(counts.narrowed(batch, None))
    assert found["v.age"].nulls == 2
    assert found["count"].nulls == 1
    assert found["count"].total == 1000.0 + columns["count"][[1, 3]].sum()
    # The same of a slice, whose buffers begin elsewhere.
    found = counts.count(counts.narrowed(batch.slice(2, 2), None))
    assert (found["v.age"].nulls, found["count"].nulls) == (1, 1)


def test_a_vector_counts_as_it_was_sent_before_a_policy_clipped_it() -> None:
    columns = drawn(3)
    changed = [[], [(2, 3.0), (2, 4.0), (2, 0.0), (2, 0.0)], [(2, None)] * 4]
    counts = counter()
    found = counts.count(counts.narrowed(batch_of(SCHEMA, columns, scored(3), changed=changed), None))["wing"]
    assert found.nulls == 1
    assert found.total == pytest.approx(float(np.linalg.norm(columns["wing"][0].astype(np.float64))) + 5.0)


def test_answers_that_are_not_the_models_are_no_outputs() -> None:
    batch = batch_of(SCHEMA, drawn(5), scored(5))
    place = batch.schema.get_field_index("verdict")
    batch = batch.set_column(place, batch.schema.field(place), pa.array([0, 1, 2, 3, 4], pa.uint8()))
    counts = counter()
    found = counts.count(counts.narrowed(batch, None))
    assert (found["out.score"].count, found["v.age"].count) == (3, 5)
    older = batch.drop_columns(["verdict"])
    counts = Counter(SCHEMA, older.schema, references(PROFILE), 500)
    assert counts.count(counts.narrowed(older, None))["out.score"].count == 5


def test_redacted_columns_are_left_out() -> None:
    redaction = Redaction({"carrier": "hash", "age": "mask", "count": "drop"})
    counts = Counter(SCHEMA, arrow_schema(SCHEMA, redaction), references(PROFILE), 500)
    assert counts.names == ["wing", "on", "out.score"]


def test_ages_and_statuses_are_compared_with_the_first_window() -> None:
    stream = StreamDrift(SCHEMA, ARROW, PROFILE, OPTIONS)
    stream.add(batch_of(SCHEMA, drawn(4000), scored(4000)))
    stream.settle()
    stream.add(batch_of(SCHEMA, drawn(4000), scored(4000)))
    (*_, same) = stream.settle()
    assert stream.judge(same).verdict == "stable"
    missing = status.DEFAULTED | status.ABSENT
    stream.add(batch_of(SCHEMA, drawn(4000), scored(4000), outcome=missing))
    (*_, lost) = stream.settle()
    found = {one.column: one.verdict for one in stream.judge(lost).columns}
    assert (found["status.v"], found["age_ms.v"]) == ("drifted", "stable")


def test_a_profile_of_another_revision_is_refused() -> None:
    other = profile_of(REFERENCE, OUTPUTS)
    other = type(other)(**{name: getattr(other, name) for name in other.__slots__} | {"views": {"v@1": 8}})
    with pytest.raises(ProfileError, match=r"revision 00000008 of v@1"):
        StreamDrift(SCHEMA, ARROW, other, OPTIONS)


def test_the_tail_gives_each_whole_batch_once(tmp_path: Path) -> None:
    tail, file = Tail(tmp_path, 1 << 30), segment(tmp_path, SCHEMA)
    assert list(tail.read()) == []
    for rows in (10, 20):
        file.write(batch_of(SCHEMA, drawn(rows), scored(rows)))
        assert [len(read.batch) for read in tail.read()] == [rows]
    torn = batch_of(SCHEMA, drawn(30), scored(30)).serialize().to_pybytes()
    with file.path.open("ab") as beside:
        beside.write(torn[: len(torn) // 2])
    assert list(tail.read()) == []
    with file.path.open("ab") as beside:
        beside.write(torn[len(torn) // 2 :])
    assert [len(read.batch) for read in tail.read()] == [30]
    again = Tail(tmp_path, 1 << 30)
    again.restore(tail.offsets)
    assert list(again.read()) == []
    file.close()
    assert list(tail.read()) == []
    file.path.unlink()
    assert list(tail.read()) == []
    assert not tail.offsets


def test_damage_is_left_out_and_the_next_segment_is_read(tmp_path: Path) -> None:
    tail, bad, good = Tail(tmp_path, 1 << 30), segment(tmp_path, SCHEMA), segment(tmp_path, SCHEMA, START_MS + 1)
    bad.write(batch_of(SCHEMA, drawn(10), scored(10)))
    start = bad.size
    bad.write(batch_of(SCHEMA, drawn(10), scored(10)))
    good.write(batch_of(SCHEMA, drawn(7), scored(7)))
    with bad.path.open("r+b") as file:
        file.seek(start + 8)
        file.write(b"\xff" * 64)
    (bad.path.parent / f"{START_MS + 2}-1-0.arrows").write_bytes(b"nothing of ours")
    assert [len(read.batch) for read in tail.read()] == [10, 7]
    assert list(tail.read()) == []
    bad.close()
    good.close()


def test_what_is_too_far_behind_is_skipped_and_counted(tmp_path: Path) -> None:
    for number in range(5):
        file = segment(tmp_path, SCHEMA, START_MS + number)
        file.write(batch_of(SCHEMA, drawn(1000 + number), scored(1000 + number)))
        file.close()
    tail = Tail(tmp_path, int(file.path.stat().st_size * 2.5))
    assert [len(read.batch) for read in tail.read()] == [1003, 1004]
    assert tail.bytes_skipped > 0
    assert list(tail.read()) == []


def test_the_budget_keeps_to_its_share() -> None:
    budget = Budget(0.1)
    wall, cpu, counted = 0.0, 0.0, 0
    for _ in range(1000):  # 100 s, in which 1,000 rows come every 0.1 s and each takes 0.1 ms
        granted = budget.grant(1000, wall)
        assert granted <= 1000
        budget.spent(granted, granted * 1e-4)
        wall, cpu, counted = wall + 0.1, cpu + granted * 1e-4, counted + granted
    assert cpu <= 0.1 * wall + BURST_S + 0.1
    assert counted > 90_000
    budget.spent(0, 5.0)
    assert budget.wait_s > 40
    assert budget.grant(1000, wall) == 0


def test_frames_come_out_as_they_went_in() -> None:
    frames = [Frame(DRIFT, b"key", b"x" * 5000), Frame(STATUS, b"", b"{}")]
    data = b"".join(map(packed, frames))
    unpacker = Unpacker()
    assert [one for start in range(0, len(data), 7) for one in unpacker.feed(data[start : start + 7])] == frames
    with pytest.raises(TooLong):
        unpacker.feed(b"\x01" + b"\xff" * 8)
    with pytest.raises(TooLong):
        packed(Frame(DRIFT, b"", b"x" * (FRAME_BYTES_MAX + 1)))


class Told:
    """A worker and what it has told."""

    def __init__(
        self, tmp_path: Path, options: MonitorOptions = OPTIONS, cpu_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._unpacker = Unpacker()
        self.frames: list[Frame] = []
        setup = Setup(JournalOptions(path=tmp_path / "journal"), tmp_path / "models", options)
        self.worker = Worker(setup, self._hear, np.random.default_rng(1), cpu_s)
        self.worker.restore(START_MS)

    def _hear(self, data: bytes) -> None:
        self.frames += self._unpacker.feed(data)

    def rounds(self, wall_s: float) -> list[dict[str, Any]]:
        """Run a round and return the windows told in it."""
        self.frames.clear()
        self.worker.round(wall_s, START_MS + int(wall_s * 1000))
        return [json.loads(frame.text) for frame in self.frames if frame.kind == DRIFT and frame.text]


def test_a_worker_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    file = segment(tmp_path / "journal", SCHEMA)
    first = Told(tmp_path)
    file.write(batch_of(SCHEMA, drawn(2500), scored(2500)))
    (told,) = first.rounds(0.0)
    assert told["rows"] == 2000
    # 500 rows are in the open pane; what comes after the checkpoint is read again by the next one.
    file.write(batch_of(SCHEMA, drawn(600), scored(600)))
    (told,) = first.rounds(1.0)
    assert told["rows"] == 3000
    second = Told(tmp_path)
    (told,) = second.rounds(2.0)
    assert (told["rows"], told["panes"]) == (3000, 3)
    assert second.worker.status()["rows_read"] == 600
    file.close()


def test_a_checkpoint_that_is_damaged_or_of_other_windows_begins_anew(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    file = segment(tmp_path / "journal", SCHEMA)
    file.write(batch_of(SCHEMA, drawn(2000), scored(2000)))
    Told(tmp_path).rounds(0.0)
    state = tmp_path / "journal" / "monitor" / "state.json"
    file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
    other = MonitorOptions(windows=WindowOptions(rows=400, panes=4), verdict_s=0.0, cpu_share=1.0)
    assert Told(tmp_path, other).rounds(1.0)[0]["rows"] == 400
    state.write_text(state.read_text()[:50])
    again = Told(tmp_path)
    assert again.worker.status()["problems"] == 1
    assert again.rounds(2.0)[0]["rows"] == 3000
    file.close()


def test_a_bad_profile_is_said_once_and_a_better_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_profile(tmp_path / "models", PROFILE)
    path.write_text(path.read_text()[:100])
    file = segment(tmp_path / "journal", SCHEMA)
    told = Told(tmp_path)
    for wall_s in range(3):
        file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
        assert told.rounds(wall_s) == []
    assert told.worker.status()["problems"] == 1
    assert len([record for record in caplog.records if "is not watched" in record.getMessage()]) == 1
    save_profile(tmp_path / "models", PROFILE)
    file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
    assert len(told.rounds(3.0)) == 1
    file.close()


def test_a_read_only_folder_costs_only_the_checkpoint(tmp_path: Path) -> None:
    file = segment(tmp_path / "journal", SCHEMA)
    (tmp_path / "journal" / "monitor").write_text("a file where the folder should be")
    save_profile(tmp_path / "models", PROFILE)
    file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
    told = Told(tmp_path)
    assert len(told.rounds(0.0)) == 1
    file.close()


def test_streams_beyond_the_bound_are_a_problem(tmp_path: Path) -> None:
    options = MonitorOptions(windows=OPTIONS.windows, streams_max=1, verdict_s=0.0)
    for variant in ("default", "new"):
        schema = schema_of_columns(REFERENCE, ["score"], variant=variant)
        file = segment(tmp_path / "journal", schema)
        file.write(batch_of(schema, drawn(1000), scored(1000)))
        file.close()
    told = Told(tmp_path, options)
    assert len(told.rounds(0.0)) == 1
    assert told.worker.status()["problems"] == 1


def test_rows_beyond_the_share_of_cpu_are_left_out_evenly_and_counted(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    file = segment(tmp_path / "journal", SCHEMA)
    cpu = iter(range(1_000_000))
    options = MonitorOptions(windows=WindowOptions(rows=400, panes=4), verdict_s=0.0, cpu_share=0.1)
    told = Told(tmp_path, options, lambda: next(cpu) * 0.01)  # 10 ms from each look at the clock to the next
    windows = []
    for step in range(150):
        file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
        windows += told.rounds(step * 0.1)
    status_now = told.worker.status()
    assert status_now["rows_read"] == 150_000
    assert status_now["rows_counted"] + status_now["rows_skipped"] == 150_000
    assert 400 < status_now["rows_counted"] < 100_000
    assert {one["verdict"] for window in windows for one in window["columns"]} <= {"few", "stable"}
    file.close()


def columns_of(windows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The columns of the last sliding window."""
    *_, last = [window for window in windows if window["kind"] == "sliding"]
    return {column["column"]: column for column in last["columns"]}


def test_callers_who_send_tensors_do_not_disturb_those_who_send_features(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    graph = {"input": np.zeros(10, np.float32)}
    tensors = schema_of_columns(graph, ["score"])
    features, raw = segment(tmp_path / "journal", SCHEMA), segment(tmp_path / "journal", tensors, START_MS + 1)
    told, windows = Told(tmp_path), []
    for step in range(4):
        features.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
        raw.write(batch_of(tensors, graph, scored(10)))
        windows += told.rounds(step)
    assert {column["rows"] for column in columns_of(windows).values()} == {4000}
    assert {column["verdict"] for column in columns_of(windows).values()} == {"stable"}
    assert told.worker.status()["rows_skipped"] == 40
    assert told.worker.status()["problems"] == 0
    assert [window["kind"] for window in windows].count("tumbling") == 1


def test_two_gateways_with_two_manifests_count_into_one_stream(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    fewer = {name: values for name, values in REFERENCE.items() if name != "carrier"}
    other = schema_of_columns(fewer, ["score"])
    files = segment(tmp_path / "journal", SCHEMA), segment(tmp_path / "journal", other, START_MS + 1)
    told, windows = Told(tmp_path), []
    for step in range(4):
        files[0].write(batch_of(SCHEMA, drawn(500), scored(500)))
        some = drawn(500)
        del some["carrier"]
        files[1].write(batch_of(other, some, scored(500)))
        windows += told.rounds(step)
    found = columns_of(windows)
    assert (found["v.age"]["rows"], found["out.score"]["rows"], found["carrier"]["rows"]) == (4000, 4000, 2000)


@pytest.mark.parametrize("hidden_first", [False, True])
def test_changed_settings_of_personal_data_end_nothing(tmp_path: Path, hidden_first: bool) -> None:
    save_profile(tmp_path / "models", PROFILE)
    inside = tmp_path / "journal" / "segments" / SCHEMA.model / f"1-default-{SCHEMA.hash}"
    redactions = [Redaction(), Redaction({"v.age": "drop", "carrier": "mask"})]
    for number, redaction in enumerate(reversed(redactions) if hidden_first else redactions):
        arrow = arrow_schema(SCHEMA, redaction)
        file = SegmentFile(inside, f"{START_MS + number}-1-{number}", arrow, 0.0)
        file.write(batch_of(SCHEMA, drawn(2000), scored(2000), redaction=redaction))
        file.close()
    told = Told(tmp_path)
    found = columns_of(told.rounds(0.0))
    assert (found["v.age"]["rows"], found["carrier"]["rows"], found["count"]["rows"]) == (2000, 2000, 4000)
    assert {column["verdict"] for column in found.values()} == {"stable"}
    assert told.worker.status()["problems"] == 0


def test_a_segment_that_cannot_be_counted_is_a_problem_of_its_own(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    good = segment(tmp_path / "journal", SCHEMA)
    timeless = batch_of(SCHEMA, drawn(10), scored(10)).drop_columns(["time"])
    bad = SegmentFile(good.path.parent, f"{START_MS - 1}-1-0", timeless.schema, 0.0)
    told = Told(tmp_path)
    for step in range(3):
        bad.write(timeless)
        good.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
        assert [window["rows"] for window in told.rounds(step)] == [1000 * (step + 1)]
    assert told.worker.status()["rows_read"] == 3010
    assert told.worker.status()["problems"] >= 1


def test_streams_without_rows_are_forgotten_everywhere(tmp_path: Path) -> None:
    options = MonitorOptions(windows=OPTIONS.windows, streams_max=1, verdict_s=0.0, cpu_share=1.0)
    supervisor = Supervisor(JournalOptions(path=tmp_path / "journal"), tmp_path / "models", options)
    save_profile(tmp_path / "models", PROFILE)
    old, new = (schema_of_columns(REFERENCE, ["score"], variant=variant) for variant in ("old", "new"))
    file = segment(tmp_path / "journal", old)
    file.write(batch_of(old, drawn(4000), scored(4000)))
    told = Told(tmp_path, options)
    told.rounds(0.0)
    supervisor.heard(told.frames)
    snapshot = supervisor.snapshot()
    assert [key.variant for key in snapshot.streams] == [key.variant for key in snapshot.tumbling] == ["old"]
    file = segment(tmp_path / "journal", new, START_MS + 1)
    file.write(batch_of(new, drawn(1000), scored(1000)))
    assert told.rounds(1.0) == []  # one too many
    # Another process has only the checkpoint of the old one.
    again = Told(tmp_path, options)
    file.write(batch_of(new, drawn(1000), scored(1000)))
    again.rounds(3 * options.windows.seconds)
    supervisor.heard(again.frames)
    assert [key.variant for key in supervisor.snapshot().streams] == ["new"]
    assert not supervisor.snapshot().tumbling
    again.worker.save()
    state = json.loads((tmp_path / "journal" / "monitor" / "state.json").read_text())
    assert [json.loads(key)[2] for key in state["streams"]] == ["new"]
    # The same of a process that goes on.
    file = segment(tmp_path / "journal", old, START_MS + 2)
    file.write(batch_of(old, drawn(1000), scored(1000)))
    again.rounds(6 * options.windows.seconds)
    supervisor.heard(again.frames)
    assert [key.variant for key in supervisor.snapshot().streams] == ["old"]


def test_the_rest_between_rounds_is_never_taken_for_silence(tmp_path: Path) -> None:
    save_profile(tmp_path / "models", PROFILE)
    file = segment(tmp_path / "journal", SCHEMA)
    file.write(batch_of(SCHEMA, drawn(1000), scored(1000)))
    cpu = iter(range(1_000_000))
    told = Told(tmp_path, MonitorOptions(cpu_share=0.01, silence_s=6.0), lambda: next(cpu) * 5.0)
    told.rounds(0.0)
    assert told.worker.wait_s == 2.0

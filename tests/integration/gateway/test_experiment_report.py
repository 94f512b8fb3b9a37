"""`headrace experiment report` on journals that the real Journal has written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gateway.experiments.experiment import Change
from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.server.cli import main
from tests.trial import START_MS, Trial, planes

MONTH = Change(views={"plane": "plane@2"})


def asked(trial: Trial, name: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["experiment", "report", name, "--config", str(trial.config), *words])


def told(trial: Trial, name: str, *words: str) -> Any:
    result = asked(trial, name, "--json", *words)
    assert result.exit_code in (0, 3), result.output
    return json.loads(result.stdout)


def row(plane: int, wait: float) -> dict[str, Any]:
    return {"tailnum": f"N{plane}", "origin": "JFK", "wait": wait}


def shadowed(folder: Path, *, requests: int = 150, noise: float = 1.0) -> tuple[Trial, Any]:
    """Requests of four planes each, all answered by both; and the true log odds of every row."""
    trial = Trial(folder)
    truth = planes(trial, 400, noise=noise)
    rng = np.random.default_rng(3)
    odds = []
    for number in range(requests):
        some = rng.integers(0, 400, 4).tolist()
        waits = rng.normal(size=4).tolist()
        rows = [row(plane, wait) for plane, wait in zip(some, waits, strict=True)]
        trial.answer(START_MS + number * 1000, rows)
        trial.answer(START_MS + number * 1000, rows, variant="shady.month", change=MONTH, again=True)
        odds += [2 * truth[plane] + 0.65 + wait - 0.25 * wait * wait for plane, wait in zip(some, waits, strict=True)]
    return trial, np.array(odds)


def drawn(odds: Any, seed: int = 9) -> list[int]:
    """Labels as these log odds make them."""
    return (np.random.default_rng(seed).random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(int).tolist()


async def test_a_shadow_is_compared_row_by_row(tmp_path: Path) -> None:
    trial, _ = shadowed(tmp_path)
    await trial.keep()
    (found,) = told(trial, "shady")
    one, two = (
        np.concatenate([served.outputs[0][:, 0] for schema, served in trial.served if schema.variant == variant])
        for variant in ("default", "shady.month")
    )
    paired = found["paired"]
    assert (paired["rows"], paired["primaries"], paired["copies"]) == (600, 600, 600)
    assert paired["mean_difference"] == pytest.approx(float(np.mean(two - one)), abs=1e-6)
    assert paired["decision_flips"] == pytest.approx(float(np.mean((one >= 0.5) != (two >= 0.5))))
    assert paired["share_beyond_tolerance"] == pytest.approx(float(np.mean(np.abs(two - one) > 0.001)))
    assert 0 < paired["spearman_in_request"] < 1
    assert found["shift"]["low"] < paired["mean_difference"] < found["shift"]["high"]
    assert found["baseline"]["units"] == len(set(_first_planes(trial)))
    assert found["verdict"] == "keep running"
    assert "labels would" in found["why"][1]


def _first_planes(trial: Trial) -> list[str]:
    return [served.requests[0].ids[0][0] for schema, served in trial.served if schema.variant == "default"]


async def test_the_view_that_differs_explains_the_change(tmp_path: Path) -> None:
    trial, _ = shadowed(tmp_path)
    await trial.keep()
    (found,) = told(trial, "shady")
    (view, *columns) = found["swaps"]["parts"]
    assert view["name"] == "plane: plane@1 → plane@2"
    assert view["explained"] == pytest.approx(1.0, abs=1e-6)
    assert [one["name"] for one in columns] == ["plane.late"]  # `lost` is the same in both
    assert found["swaps"]["replayed"] < 1e-6
    assert found["swaps"]["together"] < 1e-6
    late = found["columns"][0]
    assert (late["name"], late["baseline_view"], late["candidate_view"]) == ("plane.late", "plane@1", "plane@2")
    assert late["share_changed"] == 1.0
    assert {one["name"]: one["share_changed"] for one in found["columns"]}["plane.lost"] == 0
    assert all(one["name"] != "route.busy" for one in found["columns"])


async def test_a_view_and_a_graph_are_told_apart(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    planes(trial, 50, noise=0.2)
    trial.file.write_text(trial.experiments.replace("{month: {views", "{month: {version: 2, views"))
    trial.write_graph(2, (2.0, 0.5, 1.0, -1.0, -0.25))
    change = Change(version=2, views=MONTH.views)
    rng = np.random.default_rng(1)
    for number in range(120):
        rows = [row(number % 50, float(rng.normal()))]
        trial.answer(START_MS + number, rows)
        trial.answer(START_MS + number, rows, variant="shady.month", change=change, again=True)
    await trial.keep()
    (found,) = told(trial, "shady")
    kinds = [one["kind"] for one in found["swaps"]["parts"]]
    assert kinds == ["graph", "view", "column"]  # the wait has changed its sign, which does most
    assert found["swaps"]["parts"][0]["name"] == "version 1 → 2"
    assert found["swaps"]["parts"][0]["explained"] > 0.7 > found["swaps"]["parts"][1]["explained"]
    assert found["swaps"]["together"] > 0


async def test_labels_say_which_of_the_two_is_right(tmp_path: Path) -> None:
    trial, odds = shadowed(tmp_path, requests=500)
    await trial.keep()
    labels = trial.write_labels(drawn(odds))
    (found,) = told(trial, "shady", "--labels", str(labels))
    assert [one["metric"] for one in found["lifts"]] == ["auc", "log_loss"]
    auc, loss = found["lifts"]
    assert auc["candidate"]["value"] > auc["baseline"]["value"]
    assert auc["interval"]["low"] > 0 > loss["interval"]["high"]
    assert found["verdict"] == "promote"
    calibration = found["calibration"]
    assert calibration["candidate"]["error"] < calibration["baseline"]["error"]
    assert sum(one["rows"] for one in calibration["candidate"]["bins"]) == 2000
    assert len(found["over_time"]) > 7
    assert [one["rows"] for one in found["over_time"]] == sorted(one["rows"] for one in found["over_time"])


async def test_a_metric_that_a_shadow_cannot_have_is_told(tmp_path: Path) -> None:
    trial, odds = shadowed(tmp_path, requests=60)
    await trial.keep()
    labels = trial.write_labels(drawn(odds), minutes=odds.tolist())
    (found,) = told(trial, "shady", "--labels", str(labels), "--metric", "minutes")
    assert any("both variants of a shadow have the same minutes" in note for note in found["notes"])
    assert any("by auc in its place" in note for note in found["notes"])


async def test_equal_variants_are_equal(tmp_path: Path) -> None:
    trial, _ = shadowed(tmp_path, noise=0.0)
    await trial.keep()
    (found,) = told(trial, "shady")
    assert found["paired"]["share_beyond_tolerance"] == 0
    assert found["verdict"] == "promote"
    assert "the same scores" in found["why"][0]


async def test_what_replay_cannot_explain_is_told(tmp_path: Path) -> None:
    trial, _ = shadowed(tmp_path, requests=40)
    await trial.keep()
    assert compact(JournalOptions(path=trial.journal, free_bytes_min=0, keep_days=0), now_s=START_MS / 1000).rows == 320
    source = tmp_path / f"{trial.module}.py"
    source.write_text(source.read_text() + "\n# changed\n")
    (found,) = told(trial, "shady")
    assert found["paired"]["rows"] == 160
    assert found["swaps"] is None
    assert any("another source of" in note for note in found["notes"])
    trial.write_graph(1, (1.0, 1.0, 1.0, 1.0, 1.0))
    (found,) = told(trial, "shady")
    assert any("another graph of version 1" in note for note in found["notes"])


def split(folder: Path, *, count: int, noise: float, rows_each: int = 3, text: str = "") -> tuple[Trial, Any]:
    """Planes that fly a few times, each in its arm; and the true log odds of every row."""
    trial = Trial(folder)
    if text:
        trial.file.write_text(text)
    truth = planes(trial, count, noise=noise)
    rng = np.random.default_rng(7)
    odds = []
    for number in range(count * rows_each):
        plane, wait = number % count, float(rng.normal())
        trial.split(START_MS + number * 1000, [row(plane, wait)])
        odds.append(2 * truth[plane] + 0.65 + wait - 0.25 * wait * wait)
    return trial, np.array(odds)


async def test_a_split_with_labels_reaches_a_verdict(tmp_path: Path) -> None:
    trial, odds = split(tmp_path, count=1200, noise=2.0)
    await trial.keep()
    html = tmp_path / "report.html"
    (found,) = told(trial, "window", "--labels", str(trial.write_labels(drawn(odds))), "--html", str(html))
    assert (found["baseline"]["name"], found["candidate"]["name"]) == ("control", "month")
    assert found["baseline"]["units"] + found["candidate"]["units"] == 1200
    assert found["baseline"]["rows"] + found["candidate"]["rows"] == 3600
    assert found["mismatch"]["p"] > 0.01
    assert found["lifts"][0]["interval"]["low"] > 0
    assert found["verdict"] == "promote"
    assert (found["forced_rows"], found["named_rows"]) == (0, 0)
    page = html.read_text()
    assert "Promote" in page
    assert not re.findall(r"(?:src|href)=|<script|url\(", page)
    assert page.count("<svg") >= 5


async def test_the_worse_arm_is_rolled_back_and_the_exit_status_says_so(tmp_path: Path) -> None:
    text = Trial.experiments.replace("plane@2}}  #", "plane@1}}  #").replace(
        "control: {}", "control: {views: {plane: plane@2}}"
    )
    trial, odds = split(tmp_path, count=1200, noise=2.0, text=text)
    await trial.keep()
    result = asked(trial, "window", "--labels", str(trial.write_labels(drawn(odds))))
    assert result.exit_code == 3
    assert "roll back" in result.output
    assert "worse by" in result.output


async def test_without_an_effect_it_keeps_running_or_says_there_is_nothing_to_gain(tmp_path: Path) -> None:
    trial, odds = split(tmp_path, count=300, noise=0.0)
    await trial.keep()
    labels = str(trial.write_labels(drawn(odds)))
    (found,) = told(trial, "window", "--labels", labels)
    assert found["verdict"] == "keep running"
    assert "may be chance" in found["why"][0]
    assert "entities in each arm" in found["why"][1]
    trial.file.write_text(trial.experiments.replace("  shady:", "    compare: {effect: 0.5}\n  shady:"))
    (found,) = told(trial, "window", "--labels", labels)
    assert found["verdict"] == "roll back"
    assert "nothing to gain" in found["why"][0]
    trial.file.write_text(trial.experiments.replace("  shady:", "    compare: {margin: 0.4}\n  shady:"))
    (found,) = told(trial, "window", "--labels", labels)
    assert found["verdict"] == "promote"
    assert "up to 0.4 is accepted" in found["why"][0]


async def test_a_column_is_a_metric_of_a_split(tmp_path: Path) -> None:
    trial, odds = split(tmp_path, count=600, noise=0.5)
    await trial.keep()
    rng = np.random.default_rng(2)
    arms = {schema.variant for schema, _ in trial.served}
    assert arms == {"window.control", "window.month"}
    month = np.array([schema.variant == "window.month" for schema, _ in trial.served])
    lost = rng.normal(10.0, 1.0, len(odds)) - 2.0 * month
    labels = trial.write_labels(drawn(odds), lost=lost.tolist())
    trial.file.write_text(
        trial.experiments.replace("  shady:", "    compare: {metric: lost, better: lower, effect: 1.0}\n  shady:")
    )
    (found,) = told(trial, "window", "--labels", str(labels))
    lift = found["lifts"][0]
    assert (lift["metric"], lift["better"]) == ("lost", "lower")
    assert lift["interval"]["low"] < -2 < lift["interval"]["high"] < 0
    assert found["verdict"] == "promote"


async def test_named_entities_and_forced_variants_are_left_out(tmp_path: Path) -> None:
    text = Trial.experiments.replace("  shady:", "    overrides: {month: [N0, N1]}\n  shady:")
    trial, _ = split(tmp_path, count=200, noise=1.0, text=text)
    lonely = next(plane for plane in range(2, 200) if trial.arm_of("window", f"N{plane}") == "control")
    for number in range(40):
        trial.split(START_MS + 10_000_000 + number, [row(lonely, 0.0)], arm="month")
    await trial.keep()
    (found,) = told(trial, "window")
    assert (found["forced_rows"], found["named_rows"]) == (40, 6)
    assert found["baseline"]["units"] + found["candidate"]["units"] == 198
    assert any("left out" in note for note in found["notes"])
    assert "no labels yet" in found["why"][0]


async def test_entities_that_get_lost_are_a_mismatch(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    planes(trial, 1000, noise=1.0)
    for plane in range(1000):
        if trial.arm_of("window", f"N{plane}") == "month" and plane % 2:
            continue  # as if every second one crashed
        trial.split(START_MS + plane, [row(plane, 0.0)])
    await trial.keep()
    (found,) = told(trial, "window")
    assert found["mismatch"]["p"] < 0.001
    assert found["verdict"] == "keep running"
    assert "not split as planned" in found["why"][0]


async def test_scores_that_are_no_numbers_are_rolled_back(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    planes(trial, 60, noise=1.0)
    for name in ("N3", "N4"):
        trial.store["plane@2"][name] = {"late": float("nan"), "lost": 0.5}
    for number in range(120):
        rows = [row(number % 60, 0.0)]
        trial.answer(START_MS + number, rows)
        trial.answer(START_MS + number, rows, variant="shady.month", change=MONTH, again=True)
    await trial.keep()
    (found,) = told(trial, "shady")
    assert found["verdict"] == "roll back"
    assert "no finite numbers" in found["why"][0]
    assert found["paired"]["not_finite"] == 4


async def test_what_is_missing_is_told(tmp_path: Path) -> None:
    trial, _ = shadowed(tmp_path, requests=5)
    await trial.keep()
    for words, said in (
        (("other",), "no experiment 'other' (there are: window, shady)"),
        (("window",), "no rows of control, month of 'window'"),
        (("shady", "--since", "2030-01-01"), "no rows to compare"),
        (("shady", "--journal", str(tmp_path / "none")), "no journal in"),
        (("shady", "--labels", str(tmp_path / "none.parquet")), "there is no such file"),
        (("shady", "--labels", str(trial.write_labels([0] * 20)), "--label", "lat"), "no column of numbers 'lat'"),
    ):
        result = asked(trial, *words)
        assert result.exit_code == 1, result.output
        assert said in result.output
        assert "Traceback" not in result.output


async def test_a_canary_and_the_text(tmp_path: Path) -> None:
    text = Trial.experiments.replace(
        "split: {by: tailnum, weights: {control: 50, month: 50}}",
        "canary: {by: tailnum, baseline: control, candidate: month, steps: [{share: 50, hold: 1h}]}",
    )
    trial, odds = split(tmp_path, count=150, noise=1.0, text=text)
    await trial.keep()
    result = asked(trial, "window", "--labels", str(trial.write_labels(drawn(odds))))
    assert result.exit_code in (0, 3), result.output
    assert "month against control" in result.output
    assert "the shares of a canary change with its steps" in result.output
    assert "log_loss" in result.output

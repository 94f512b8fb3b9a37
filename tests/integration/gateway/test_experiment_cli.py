"""`headrace experiment start | stop | promote | rollback | status`."""

import difflib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from featureclient.schema import document
from gateway.experiments.form import ExperimentForm, ExperimentsForm
from gateway.server.cli import main
from gateway.server.http import HttpEndpoint, HttpOptions, Request, Response
from tests.trial import Trial

FILE = """# who sees what
experiments:
    # thirty days instead of all time
    window:
        model: delay   # the only one
        variants:
            control: {}
            month: {views: {plane: "plane@2"}}
            year: {views: {plane: plane@1}}
        split:
            by: tailnum
            weights: {control: 50, month: 25, year: 25}
        overrides:
            month:
              - N1
              - 7

    careful:
        model: delay
        state: stopped  # until Monday
        variants: {control: {}, next: {transforms: {}, version: 1}}
        canary: {by: origin, baseline: control, candidate: next, steps: [{share: 5, hold: 1h}]}
    shady:
        model: delay
        variants: {month: {views: {plane: plane@2}}}
        shadow: {variants: [month]}
# the end
"""


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path, experiments=FILE)


def done(trial: Trial, *words: str) -> Result:
    return CliRunner().invoke(main, ["experiment", *words, "--config", str(trial.config)])


def changed(trial: Trial) -> list[str]:
    """The lines of the file that have come and gone."""
    lines = difflib.ndiff(FILE.splitlines(), trial.file.read_text().splitlines())
    return [line[0] + line[1:].strip() for line in lines if line[0] in "+-"]


def form(trial: Trial, name: str) -> ExperimentForm:
    return document.load(trial.file, ExperimentsForm).experiments[name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("stop", "window"), ["+state: stopped"]),
        (("promote", "window", "month"), ["+everybody: month"]),
        (("rollback", "window"), ["+everybody: control"]),
        (
            ("promote", "careful"),
            ["+everybody: next", "-state: stopped  # until Monday", "+state: running  # until Monday"],
        ),
        (("rollback", "shady"), ["+state: stopped"]),
    ],
)
def test_an_edit_changes_its_lines_and_no_other(trial: Trial, words: tuple[str, ...], expected: list[str]) -> None:
    trial.file.chmod(0o640)
    result = done(trial, *words)
    assert result.exit_code == 0, result.output
    assert sorted(changed(trial)) == sorted(expected)
    assert trial.file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in trial.folder.glob(".experiments*")] == []


def test_start_begins_anew(trial: Trial) -> None:
    assert done(trial, "promote", "window", "month").exit_code == 0
    assert form(trial, "window").everybody == "month"
    assert done(trial, "start", "window").exit_code == 0
    assert changed(trial) == []
    assert done(trial, "start", "careful").exit_code == 0
    canary = form(trial, "careful").canary
    assert canary is not None
    assert (canary.attempt, form(trial, "careful").state) == (2, "running")
    assert done(trial, "start", "careful").exit_code == 0
    canary = form(trial, "careful").canary
    assert canary is not None
    assert canary.attempt == 2  # it runs already


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "window"), "several candidates: name one of month, year"),
        (("promote", "window", "day"), "'day' is no arm of 'window' (they are: month, year, control)"),
        (("promote", "shady"), "a shadow and answers nobody"),
        (("stop", "nothing"), "no experiment 'nothing' (there are: window, careful, shady)"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(trial: Trial, words: tuple[str, ...], said: str) -> None:
    result = done(trial, *words)
    assert result.exit_code == 1
    assert said in result.output
    assert trial.file.read_text() == FILE


def test_an_edit_that_makes_the_file_wrong_is_not_written(trial: Trial) -> None:
    """Started, the canary would be about a version that there is not."""
    text = FILE.replace("version: 1}}", "version: 9}}")
    trial.file.write_text(text)
    result = done(trial, "start", "careful")
    assert result.exit_code == 1
    assert "experiments.yaml:21" in result.output
    assert "version 9 is not loaded" in result.output
    assert trial.file.read_text() == text
    assert [path.name for path in trial.folder.glob(".experiments*")] == []


def test_a_file_that_is_a_link_stays_one(trial: Trial) -> None:
    real = trial.folder / "elsewhere.yaml"
    trial.file.rename(real)
    trial.file.symlink_to(real)
    assert done(trial, "stop", "window").exit_code == 0
    assert trial.file.is_symlink()
    assert "state: stopped" in real.read_text()


def test_a_bad_file_and_no_file_are_told(trial: Trial) -> None:
    trial.file.write_text("experiments: {window: {model: dela}}\n")
    result = done(trial, "stop", "window")
    assert (result.exit_code, "experiments.yaml:1" in result.output) == (1, True)
    trial.config.write_text(trial.config.read_text().replace("experiments: experiments.yaml\n", ""))
    assert "no experiments.yaml: set `experiments`" in done(trial, "stop", "window").output


PAGE: dict[str, Any] = {
    "file": "experiments.yaml",
    "failure": "experiments.yaml:4: weights",
    "store_trouble": None,
    "experiments": [
        {
            "name": "window", "model": "delay", "kind": "split", "state": "running", "why": "",
            "warnings": ["a warning"],
            "arms": [
                {
                    "name": "month", "share": 50.0,
                    "seen": {"requests": 12345, "errors": 1, "rows": 20000, "violations": 3,
                             "scores": {"count": 5, "mean": 0.25, "std": None}, "p50_s": 0.001, "p99_s": 0.004},
                }
            ],
        },
        {
            "name": "shady", "model": "delay", "kind": "shadow", "state": "running", "why": "",
            "arms": [{"name": "month", "share": 100.0}],
            "comparisons": {
                "month": {
                    "rows": 10, "replaced": 2,
                    "outputs": {"score": {"mean_difference": 0.5, "quantiles": {"0.5": 0.1}, "pearson": None}},
                    "columns": {"plane.late": {"rows": 10, "share_changed": 0.5},
                                "plane.lost": {"rows": 10, "share_changed": 0.0}},
                }
            },
        },
    ],
}  # fmt: skip


def test_status_is_the_page_of_a_gateway(trial: Trial) -> None:
    def page(request: Request) -> Response:
        return Response(200, "application/json", json.dumps(PAGE).encode())

    with HttpEndpoint({"/experiments": page}, HttpOptions(listen="127.0.0.1:0")) as endpoint:
        url = f"http://{endpoint.address}"
        result = done(trial, "status", "--url", url)
        assert result.exit_code == 0, result.output
        for said in (
            "12,345",
            "50 %",
            "4 ms",
            "0.25",
            "window: a warning",
            "rows 10, replaced 2",
            "score: mean difference 0.5",
            "plane.late: rows 10, share changed 0.5",
            "failure:",
        ):
            assert said in result.output
        assert "plane.lost" not in result.output
        assert json.loads(done(trial, "status", "--json", "--url", url).output) == PAGE
    gone = done(trial, "status", "--url", url)
    assert (gone.exit_code, "does the gateway run" in gone.output) == (1, True)
    assert "no address of HTTP" in done(trial, "status", "--url", "file:///etc").output

"""`headrace drift` on a journal of segments and Parquet files."""

import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.server.drift_cli import drift
from tests.drifting import batch_of, profile_of, save_profile, schema_of_columns, segment

RANDOM = np.random.default_rng(0)


def drawn(rows: int, mean: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "v.x": RANDOM.normal(mean, 1, rows).astype(np.float32),
        "<b>odd & name": RANDOM.normal(size=rows).astype(np.float32),
        "carrier": RANDOM.choice(np.array(["AA", "UA"], object), rows),
    }


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Ten hours: the first five became Parquet, the rest are segments; `v.x` moves in the second half."""
    reference = drawn(20_000)
    save_profile(tmp_path / "models", profile_of(reference, {}))
    schema = schema_of_columns(reference)
    now_ms = int(time.time() * 1000)
    options = JournalOptions(path=tmp_path / "journal", free_bytes_min=0)
    for hour in range(10):
        at_ms = now_ms - (10 - hour) * 3_600_000
        file = segment(options.path, schema, at_ms)
        file.write(batch_of(schema, drawn(1000, mean=2.0 if hour >= 5 else 0.0), {}, at_ms))
        file.close()
        if hour == 4:
            assert compact(options, now_s=time.time()).rows == 5000
    return options.path


def ran(journal: Path, *arguments: str) -> Result:
    models = journal.parent / "models"
    given = ["--model", "flight_delay", "--journal", str(journal), "--models", str(models), *arguments]
    return CliRunner().invoke(drift, given)


def test_it_compares_segments_and_parquet_and_tells_by_its_exit(journal: Path) -> None:
    result = ran(journal, "--json", "--since", "all")
    assert result.exit_code == 3, result.output
    (stream,) = json.loads(result.stdout)
    assert (stream["model"], stream["rows"]) == ("flight_delay", 10_000)
    verdicts = {column["column"]: column["verdict"] for column in stream["columns"]}
    assert verdicts == {"v.x": "drifted", "<b>odd & name": "stable", "carrier": "stable"}


def test_a_span_before_the_drift_is_stable(journal: Path) -> None:
    result = ran(journal, "--since", "10.5h", "--window", "5h")
    assert result.exit_code == 0, result.output
    assert "5,000 rows" in result.stdout
    assert re.search(r"v\.x .* stable", result.stdout)


def test_ten_hours_of_a_long_span_have_a_verdict(journal: Path) -> None:
    result = ran(journal, "--json", "--since", "200d")
    assert result.exit_code == 3, result.output
    (stream,) = json.loads(result.stdout)
    assert [column["verdict"] for column in stream["columns"] if column["column"] == "v.x"] == ["drifted"]


def test_the_report_is_one_file_and_escapes_what_it_shows(journal: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert ran(journal, "--html", str(page)).exit_code == 3
    text = page.read_text()
    assert "&lt;b&gt;odd &amp; name" in text
    assert "<b>odd" not in text
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    drawings = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawings) == 6
    heights = [float(bar.get("height", "nan")) for drawing in drawings for bar in drawing.iter("rect")]
    assert min(heights) >= 0
    assert max(heights) <= 110.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "1m"), "no rows of flight_delay to compare in this span"),
        (("--since", "yesterday"), "is no moment"),
        (("--since", "2999-01-01"), "is not in the past"),
        (("--window", "long"), "is no length"),
        (("--level", "2"), "level must be between 0 and 1"),
        (("--model", "other", "--since", "all"), "has no rows of other"),
    ],
)
def test_what_cannot_be_done_is_said(journal: Path, arguments: tuple[str, ...], said: str) -> None:
    result = ran(journal, *arguments)
    assert result.exit_code in {1, 2}
    assert said in result.output


def test_a_missing_profile_says_what_to_do(journal: Path) -> None:
    (journal.parent / "models" / "flight_delay" / "1" / "profile.json").unlink()
    result = ran(journal)
    assert result.exit_code == 1
    assert "profile.json cannot be read" in result.output


def test_journals_of_replicas_are_compared_together(journal: Path, tmp_path: Path) -> None:
    reference = drawn(10)
    other = segment(tmp_path / "other", schema_of_columns(reference), int(time.time() * 1000))
    other.write(batch_of(other_schema := schema_of_columns(reference), drawn(5000), {}, int(time.time() * 1000) - 1000))
    assert other_schema.hash in str(other.path)
    other.close()
    # The first is named twice, and counted once.
    result = ran(journal, "--journal", str(tmp_path / "other"), "--journal", str(journal), "--json", "--since", "all")
    assert result.exit_code == 3, result.output
    (stream,) = json.loads(result.stdout)
    assert stream["rows"] == 15_000


def test_a_file_or_a_variant_that_cannot_be_compared_is_said_and_the_rest_goes_on(journal: Path) -> None:
    (parquet,) = (journal / "parquet").rglob("*.parquet")
    parquet.write_bytes(b"no Parquet")
    tensors = schema_of_columns({"input": np.zeros(10, np.float32)})
    at_ms = int(time.time() * 1000) - 1000
    file = segment(journal, tensors, at_ms)
    file.write(batch_of(tensors, {"input": np.zeros(10, np.float32)}, {}, at_ms))
    file.close()
    odd = drawn(10)
    odd["v.x"] = odd["v.x"].astype(np.float64)  # not as the profile has it
    wrong = schema_of_columns(odd)
    file = segment(journal, wrong, at_ms + 1)
    file.write(batch_of(wrong, odd, {}, at_ms))
    file.close()
    result = ran(journal, "--json", "--since", "all")
    assert result.exit_code == 3, result.output
    (stream,) = json.loads(result.stdout)
    assert stream["rows"] == 5000
    assert f"{parquet} cannot be read" in result.stderr
    assert f"schema {wrong.hash}, is left out: the profile does not fit" in result.stderr

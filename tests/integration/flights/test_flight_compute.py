"""The row of a plane that was never loaded: the same, computed by SQL when it is asked for, as built for all planes."""

import math
from pathlib import Path

import numpy as np
import pytest

from examples.flights.build import write_sources
from examples.flights.demo import ROWS_FROM_CATALOGUE
from examples.flights.features import AS_OF_MIN, CATALOGUE, Features
from featureclient.compute import Computer
from featureclient.schema import EVENT_TIME, Catalogue


@pytest.fixture(scope="module")
def computed(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The example's catalogue, with the files beside it."""
    folder: Path = tmp_path_factory.mktemp("computed")
    write_sources(features, folder)
    text = CATALOGUE.read_text()
    assert ROWS_FROM_CATALOGUE in text
    return Catalogue.parse(text.replace(ROWS_FROM_CATALOGUE, ""), str(folder / "features.yaml"))


@pytest.mark.parametrize("version", [1, 2])
async def test_computed_is_what_was_built(features: Features, computed: Catalogue, version: int) -> None:
    built = features.table("plane_stats") if version == 1 else features.windowed()
    ids = [*built["tailnum"].to_pylist(), "NOSUCH"]
    async with Computer(computed) as computer:
        assert list(computer.check()) == []
        table = await computer.compute(computed.view(f"plane_stats@{version}"), ids, math.inf)
    order = np.argsort(table["tailnum"])
    expected = built.sort_by("tailnum")
    assert [table["tailnum"][place] for place in order] == expected["tailnum"].to_pylist()
    for name in ("flights", "late_share", "lost_min", "built", "seats", EVENT_TIME):
        found = np.ma.MaskedArray(table[name])[order].tolist()
        assert found == expected[name].to_pylist(), name
    assert set(table[EVENT_TIME].tolist()) == {AS_OF_MIN * 60_000}

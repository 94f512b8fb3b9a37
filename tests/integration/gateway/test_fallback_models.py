"""A model that others fall back to is there and fits, or it is told."""

from pathlib import Path

import pytest

from gateway.inference.loading import ModelsNotLoaded
from tests.models import PLAIN, Rig, add_scaled

VALIDATION = "validation: {{fallback: {{model: {to}}}, columns: {{c: {{range: {{min: 0}}, policy: fallback}}}}}}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    add_scaled(folder, "plain", 1, 2)
    return folder


def add(root: Path, name: str, to: str = "", version: int = 1, context: str = "") -> None:
    manifest = PLAIN.format(name=name) if not context else f"name: {name}\ncontext: {{{context}: float32}}\n"
    manifest += f"inputs: {{x: [{context}]}}\n" if context else ""
    add_scaled(root, name, version, version, model__yaml=manifest + (VALIDATION.format(to=to) if to else ""))


@pytest.mark.parametrize(
    ("to", "said"),
    [("nobody", "falls back to nobody, which does not serve"), ("plain", "falls back to plain, which has no manifest")],
)
async def test_a_model_with_nobody_to_answer_is_not_loaded(root: Path, to: str, said: str) -> None:
    rig = Rig(root)
    add(root, "one", to=to)
    with pytest.raises(ModelsNotLoaded, match=said):
        await rig.models.load("one")
    assert rig.serving() == [("plain", 1)]
    assert rig.models.counts.reasons == {("one", "fallback"): 1}
    assert said in rig.reason("one", -1)
    assert await rig.models.refresh() == []  # it has been said


async def test_a_fallback_that_no_longer_fits_is_not_loaded(root: Path) -> None:
    add(root, "one", to="two")
    add(root, "two")
    rig = Rig(root)
    add(root, "two", version=2, context="other")
    (problem,) = await rig.models.refresh()
    assert "model one/1 falls back to two, which does not fit" in str(problem)
    assert rig.serving() == [("one", 1), ("plain", 1), ("two", 1)]
    add(root, "two", version=2)
    assert await rig.models.refresh() == []
    assert ("two", 2) in rig.serving()


async def test_models_that_come_together_may_come_in_any_order(root: Path) -> None:
    rig = Rig(root)
    add(root, "a", to="b")
    add(root, "b", to="c")
    assert len(await rig.models.refresh()) == 2
    add(root, "c")
    assert await rig.models.refresh() == []
    assert rig.serving() == [("a", 1), ("b", 1), ("c", 1), ("plain", 1)]


@pytest.mark.parametrize("by_name", [True, False])
async def test_to_take_a_fallback_away_is_told(root: Path, by_name: bool, caplog: pytest.LogCaptureFixture) -> None:
    add(root, "one", to="two")
    add(root, "two")
    rig = Rig(root)
    if by_name:
        await rig.models.unload("two")
    else:
        (root / "two").rename(root / ".two")
    said = "model one/1 falls back to two, which does not serve"
    for _ in range(2):  # as long as it is so
        (problem,) = await rig.models.refresh()
        assert said in str(problem)
        assert (rig.states()["one", 1], said in rig.reason("one", 1)) == ("READY", True)
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1
    if not by_name:
        (root / ".two").rename(root / "two")
    await rig.models.load("two")
    assert await rig.models.refresh() == []
    assert not rig.reason("one", 1)

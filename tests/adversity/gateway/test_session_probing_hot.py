"""A graph that would end the server is refused while the server runs, and what serves goes on."""

from pathlib import Path

from tests import graphs
from tests.models import Rig, add_scaled


async def test_a_version_that_crashes_never_reaches_the_server(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root, check=True)
    folder = root / "plain" / "2"
    folder.mkdir()
    graphs.saved(graphs.deep_tree(), folder)
    (problem,) = await rig.models.refresh()
    assert "crashes with SIGSEGV while it was loaded in a process of its own" in str(problem)
    assert (rig.serving(), rig.factor("plain")) == ([("plain", 1)], 2)
    assert rig.states()["plain", 2] == "UNAVAILABLE"
    add_scaled(root, "plain", 2, 3)
    assert await rig.models.refresh() == []
    assert (rig.serving(), rig.factor("plain")) == ([("plain", 2)], 3)

"""What `loadtest.features` makes of its numbers, and that the program runs."""

import pytest

from loadtest.features import ENTITIES, Goal, Spent, goals, measure, running_redis

WORKS = ("mget", "cold fetch", "cold read", "readers", "readers gathered", "warm rows", "warm model input", "warm read")


def test_a_goal_has_bounds_on_either_side_or_none() -> None:
    assert Goal("a", 2.0, "x", most=2.0).met
    assert not Goal("a", 2.1, "x", most=2.0).met
    assert Goal("a", 8.0, "x", least=8.0).met
    assert not Goal("a", 7.9, "x", least=8.0).met
    assert Goal("a", 1e9, "x").met


def test_ratios_are_of_the_works_that_they_name() -> None:
    spent = {name: Spent(wall_ms=1.0, cpu_ms=0.064) for name in WORKS} | {
        "mget": Spent(0.5, 0.1),
        "warm model input": Spent(ENTITIES * 50e-6, 0.0),
        "feast": Spent(40.0, 30.0),
        "feast layout": Spent(4.0, 2.0),
    }
    reached = {goal.name: goal.value for goal in goals(spent)}
    assert reached == {
        "cold: fetch of 200 rows, of a bare MGET": pytest.approx(2.0),
        "cold: read of 200 rows, of a bare MGET": pytest.approx(2.0),
        "64 readers, a fetch each: CPU a reader": pytest.approx(1.0),
        "64 readers, gathered: CPU a reader": pytest.approx(1.0),
        "warm: ids to a model's input, a row": pytest.approx(50.0),
        "Feast, of ours in our layout: wall": pytest.approx(40.0),
        "Feast, of ours in our layout: CPU": pytest.approx(30.0 / 0.064),
        "Feast, of ours in Feast's layout: wall": pytest.approx(10.0),
        "Feast, of ours in Feast's layout: CPU": pytest.approx(15.0),
    }
    without = {name: one for name, one in spent.items() if not name.startswith("feast")}
    assert [goal.name for goal in goals(without) if "Feast" in goal.name] == []


@pytest.mark.slow
async def test_a_round_without_feast() -> None:
    with running_redis() as path:
        spent = await measure(path, None, 1)
    assert set(spent) == set(WORKS)
    assert all(one.wall_ms > 0 for one in spent.values())

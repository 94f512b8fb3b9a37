"""Shadows on real Redis and real graphs: they see what the primaries saw, and nobody sees them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from gateway.experiments.assignment import Assignment, Stretches
from gateway.inference.variants import IdsAt, Target
from gateway.pipeline.comparison import Compare, Comparisons
from gateway.records.request import Override
from tests.running import COLUMNS, WEIGHTS, Site
from tests.shadowing import Rig, shadow_rig, shadow_site, write_second
from tests.waiting import soon, soon_blocking

USERS = 40
APART = float(WEIGHTS[COLUMNS.index("user.age"), 0] + 100 * WEIGHTS[COLUMNS.index("user.visits"), 0])
"""What the second version of a user's row changes of a score."""


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return shadow_site(tmp_path, redis_url)


@pytest.fixture
async def rig(site: Site, redis_url: str) -> AsyncIterator[Rig]:
    async with shadow_rig(site, redis_url) as rig:
        await write_second(rig.client, USERS)
        yield rig


async def ask(rig: Rig, *requests: tuple[str, list[str]]) -> None:
    before = len(rig.kept.outputs) + len(rig.kept.errors)
    rig.pipeline.accept(rig.model, [rig.ask(name, users) for name, users in requests])
    await rig.kept.ended(before + len(requests))


async def test_the_same_requests_are_answered_with_the_other_version(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    await ask(rig, ("a", ["u1", "u2", "u3"]), ("b", ["u7"]))
    assert await rig.counted(4) == {"compared": 4}
    found = {}
    for compared in rig.compared:
        start = 0
        for request, number in zip(compared.shadow.requests, compared.shadow.numbers.tolist(), strict=True):
            span = slice(start, start + request.rows)
            start = span.stop
            found[request.request_id] = number
            np.testing.assert_array_equal(compared.outputs[0][span], rig.kept.outputs[request.request_id][0])
            np.testing.assert_allclose(compared.shadow.outputs[0][span] - compared.outputs[0][span], APART, rtol=1e-4)
        assert compared.shadow.model.variant == "second"
        assert compared.experiment == "try"
    assert sorted(found) == ["a", "b"]
    assert sorted(found.values()) == [0, 1]  # the prediction ids of the answers
    assert rig.shadow.state().queued_rows == 0


async def test_what_both_read_is_read_once_and_the_rest_by_a_client_of_the_shadows_own(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    await ask(rig, ("a", ["u1", "u2", "u3"]))
    await rig.counted(3)
    assert sum(rig.reads) == 9  # users, items and pairs
    assert sum(rig.shadow_reads) == 3  # users of the second version
    await ask(rig, ("b", ["u1", "u2", "u3"]))
    await rig.counted(6)
    assert (sum(rig.reads), sum(rig.shadow_reads)) == (9, 3)  # both have cached them


async def test_a_variant_that_changes_nothing_is_bit_for_bit_the_primary_and_reads_nothing(rig: Rig) -> None:
    rig.shadowed(rig.variant("same", views={}))
    await ask(rig, *[(f"r{i}", [f"u{i % USERS}"]) for i in range(200)])
    assert await rig.counted(200, "same") == {"compared": 200}
    for compared in rig.compared:
        np.testing.assert_array_equal(compared.shadow.outputs[0], compared.outputs[0])
        assert compared.blocks == {}
    assert rig.shadow_reads == []


async def test_primaries_answer_the_same_with_and_without(site: Site, redis_url: str) -> None:
    answers = []
    for with_shadow in (False, True):
        async with shadow_rig(site, redis_url) as rig:
            await write_second(rig.client, USERS)
            if with_shadow:
                rig.shadowed(rig.variant(), rig.variant("same", views={}))
            # Some have unknown users, some are too late, some break the bound.
            late = rig.ask("late", ["u1"], stay_s=-1)
            some = [rig.ask(f"r{i}", [f"u{i}", f"u{i + 1}"]) for i in range(2 * USERS)]
            rig.pipeline.accept(rig.model, [late, *some])
            await rig.kept.ended(len(some) + 1)
            if with_shadow:
                await rig.counted(len(some) * 2)
            outputs = {name: [one.tobytes() for one in outputs] for name, outputs in rig.kept.outputs.items()}
            errors = {name: str(error) for name, error in rig.kept.errors.items()}
            answers.append((outputs, errors))
    assert answers[0] == answers[1]
    assert set(answers[0][1]) == {"late"}


async def test_a_request_that_is_larger_than_a_slice_is_put_together_again(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    users = [f"u{i % USERS}" for i in range(5000)]
    await ask(rig, ("large", users), ("small", ["u3"]))
    assert await rig.counted(5001) == {"compared": 5001}
    (large,) = [one for one in rig.compared if one.shadow.requests[0].rows == 5000]
    np.testing.assert_allclose(large.shadow.outputs[0] - large.outputs[0], APART, rtol=1e-3)
    assert [len(block) for block in large.shadow.assembled.blocks] == [5000, 5000, 5000]
    assert rig.shadow.state().slices > 10


async def test_a_batch_that_is_larger_than_a_slice_is_split_and_keeps_its_order(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    await ask(rig, *[(f"r{i}", [f"u{i % USERS}"]) for i in range(3000)])
    assert await rig.counted(3000) == {"compared": 3000}
    seen = [request.request_id for one in rig.compared for request in one.shadow.requests]
    assert seen == [f"r{i}" for i in range(3000)]
    for compared in rig.compared:
        ages = compared.shadow.assembled.blocks[0]
        assert len(ages) == len(compared.outputs[0]) == len(compared.blocks[0])


async def test_ids_decide_who_is_copied_or_chance_does(rig: Rig) -> None:
    stretches = Stretches.of("try", {"shadowed": 50.0})
    by = IdsAt.of(rig.model.plan, "user")
    rig.targets[rig.model] = [Target("try", rig.variant(), 50.0, Assignment(stretches), by)]
    await ask(rig, *[(f"r{i}", [f"u{i}"]) for i in range(USERS)])
    expected = {f"r{i}" for i, arm in enumerate(stretches.find([f"u{i}" for i in range(USERS)])) if arm == 0}
    await rig.counted(len(expected))
    assert {one.request_id for compared in rig.compared for one in compared.shadow.requests} == expected
    for compared in rig.compared:
        np.testing.assert_allclose(compared.shadow.outputs[0] - compared.outputs[0], APART, rtol=1e-4)
    rig.shadowed(rig.variant("chance"), share=30.0)
    await ask(rig, *[(f"c{i}", [f"u{i % USERS}"]) for i in range(2000)])
    await soon(lambda: "compared" in rig.counts("chance") and rig.shadow.state().queued_rows == 0, 10)
    assert 450 < rig.counts("chance")["compared"] < 750


async def test_what_the_caller_does_after_the_answer_does_not_matter(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    request = rig.ask("a", ["u1"], stay_s=0.2)
    rig.pipeline.accept(rig.model, [request])
    await rig.kept.ended(1)
    request.caller.cancelled = True  # type: ignore[misc]  # the caller of a test
    await asyncio.sleep(0.25)
    assert await rig.counted(1) == {"compared": 1}


async def test_overrides_of_columns_that_the_version_has_go_with_the_request(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    request = rig.ask("a", ["u1"])._replace(overrides=(Override(0, "age", np.float32([50.0])),))
    rig.pipeline.accept(rig.model, [request])
    await rig.counted(1)
    (compared,) = rig.compared
    visits = 100 * float(WEIGHTS[COLUMNS.index("user.visits"), 0])
    np.testing.assert_allclose(compared.shadow.outputs[0] - compared.outputs[0], visits, rtol=1e-5)


async def test_the_journal_gets_the_variant_with_the_ids_of_the_answers(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    await ask(rig, ("a", ["u1"]), ("b", ["u2"]))
    await rig.counted(2)
    numbers = [number for answers, _ in rig.journaled for number in answers.numbers.tolist()]
    assert sorted(numbers) == [0, 1]
    for answers, moments in rig.journaled:
        assert answers.model.variant == "second"
        assert len(moments.arrived) == len(answers.requests)
        assert moments.ready <= moments.assembled <= moments.computed <= moments.answered


async def test_ages_are_counted_from_the_primarys_moment(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    await ask(rig, ("a", ["u1"]))
    before_ms = time.time() * 1000
    await rig.counted(1)
    (compared,) = rig.compared
    assert compared.shadow.assembled.now_ms <= before_ms


async def test_nothing_is_copied_where_there_is_no_target(rig: Rig) -> None:
    await ask(rig, ("a", ["u1"]))
    assert rig.shadow.state().rows == {}
    assert rig.shadow.state().slices == 0


async def test_comparisons_tell_scores_and_feature_values_apart(rig: Rig) -> None:
    rig.shadowed(rig.variant())
    with Comparisons(lambda experiment: Compare() if experiment == "try" else None) as comparisons:
        rig.shadow.told = comparisons.offer
        await ask(rig, *[(f"r{i}", ["u1", "u2", "u3", "u4"]) for i in range(20)])
        await rig.counted(80)
        soon_blocking(lambda: bool(comparisons.summaries().get("try", {}).get("second", {}).get("rows") == 80), 5)
        summary = comparisons.summaries()["try"]["second"]
        assert summary["requests"] == 20
        assert summary["outputs"]["score"]["rows"] == 80
        assert summary["outputs"]["score"]["mean_difference"] == pytest.approx(APART, rel=1e-3)
        assert summary["outputs"]["score"]["spearman_in_request"] == pytest.approx(1.0)
        assert summary["columns"]["user.age"] == {
            "rows": 80, "share_changed": 1.0, "mean_difference": 1.0, "deviation": 0.0,
        }  # fmt: skip
        assert summary["columns"]["user.visits"]["mean_difference"] == 100.0
        (difference,) = comparisons.differences()
        assert difference[:3] == ("try", "second", "score")
        comparisons.forget(lambda experiment: experiment == "try")
        assert comparisons.summaries() == {}

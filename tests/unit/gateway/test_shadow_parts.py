"""The parts of a shadow that need no loop: the budget, the loop's load, and how requests are cut and put together."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gateway.experiments.paired import PairedOptions
from gateway.pipeline.budget import BURST_S, Budget, Load
from gateway.pipeline.comparison import ColumnDifference, Compare, Pair
from gateway.pipeline.copies import PARTS_MAX, Copied, Part, both, gathered, pieces, split, without
from gateway.pipeline.shadow_options import ShadowOptions
from gateway.plan import Assembled
from gateway.records.request import Override, Request
from tests.executing import Waiting


def request(name: str, rows: int, *, one_id: bool = False) -> Request:
    first = [f"{name}-{i}" for i in range(rows)]
    second = [name] if one_id else [f"{name}+{i}" for i in range(rows)]
    context = (np.arange(rows, dtype=np.float32).tobytes(), [f"{name}{i}" for i in range(rows)])
    override = Override(0, "a", np.arange(rows, dtype=np.float32))
    return Request(Waiting(name), "m", name, 0.0, 9.0, rows, (first, second), context, (override,), (), False)


def copied(*requests: Request, offered: float = 0.0) -> Copied:
    rows = sum(one.rows for one in requests)
    stored = [[str(one_id).encode() for one in requests for one_id in one.ids[view]] for view in (0, 1)]
    number = np.arange(rows, dtype=np.float32)
    answered = np.arange(rows) % 2 == 0
    numbers = np.arange(len(requests), dtype=np.uint64)
    return Copied(requests, stored, rows, [number], numbers, [0.0] * len(requests), answered, 5, offered)


class TestCutting:
    def test_requests_stay_whole_and_everything_stays_with_its_request(self) -> None:
        whole = copied(*[request(f"r{i}", rows, one_id=i % 2 == 0) for i, rows in enumerate((3, 1, 4, 9, 2, 1))])
        parts = split(whole, 5)
        assert [[one.request_id for one in part.requests] for part in parts] == [["r0", "r1"], ["r2"], ["r3"],
                                                                               ["r4", "r5"]]  # fmt: skip
        for part in parts:
            assert part.rows == sum(one.rows for one in part.requests) == len(part.outputs[0])
            assert part.answered is not None
            assert len(part.answered) == part.rows
            for view in (0, 1):
                ids = [str(one_id).encode() for one in part.requests for one_id in one.ids[view]]
                assert list(part.stored[view]) == ids
        again = gathered(parts)
        assert again.rows == whole.rows
        assert [list(rows) for rows in again.stored] == [list(rows) for rows in whole.stored]
        np.testing.assert_array_equal(again.outputs[0], whole.outputs[0])
        np.testing.assert_array_equal(again.numbers, whole.numbers)
        assert again.answered is not None
        np.testing.assert_array_equal(again.answered, whole.answered)

    def test_a_batch_is_cut_into_a_few_parts_at_a_time(self) -> None:
        parts = split(copied(*[request(f"r{i}", 1) for i in range(1000)]), 10)
        assert len(parts) == PARTS_MAX
        assert [part.rows for part in parts] == [10] * (PARTS_MAX - 1) + [1000 - 10 * (PARTS_MAX - 1)]

    @pytest.mark.parametrize("one_id", [False, True])
    def test_a_request_is_cut_by_rows_and_its_answer_put_together_in_any_order(self, *, one_id: bool) -> None:
        whole = copied(request("r", 10, one_id=one_id))
        cut = list(pieces(whole, 4))
        assert [piece.rows for piece in cut] == [4, 4, 2]
        for start, piece in zip((0, 4, 8), cut, strict=True):
            (one,) = piece.requests
            rows = range(start, start + piece.rows)
            assert one.ids[0] == [f"r-{i}" for i in rows]
            assert one.ids[1] == (["r"] if one_id else [f"r+{i}" for i in rows])
            assert np.frombuffer(one.context[0], np.float32).tolist() == list(rows)  # type: ignore[arg-type]
            assert one.context[1] == [f"r{i}" for i in rows]
            assert one.overrides[0].values.tolist() == list(rows)
            assert [len(stored) for stored in piece.stored] == [len(ids) for ids in one.ids]
        joined = None
        for number in (2, 0, 1):
            piece = cut[number]
            assert joined is None
            values = np.arange(number * 4, number * 4 + piece.rows)
            codes = values.astype(np.uint8)
            assembled = Assembled({"x": values}, (codes,), (values,), 5, None, (), (values,))
            assert piece.piece is not None
            joined = piece.piece[0].put(number, Part(assembled, [values], None, None))
        assert joined is not None
        assert joined.outputs[0].tolist() == list(range(10))
        assert joined.assembled.inputs["x"].tolist() == list(range(10))
        assert joined.assembled.context[0].tolist() == list(range(10))

    def test_a_request_goes_when_one_of_its_rows_does(self) -> None:
        gone = np.zeros(6, np.bool_)
        gone[4] = True
        left, rows = without(copied(request("a", 2), request("b", 3), request("c", 1)), gone)
        assert [one.request_id for one in left.requests] == ["a", "c"]
        assert rows.tolist() == [True, True, False, False, False, True]
        assert left.outputs[0].tolist() == [0, 1, 5]
        assert left.numbers.tolist() == [0, 2]
        assert list(left.stored[0]) == [b"a-0", b"a-1", b"c-0"]

    def test_rows_that_count_in_both(self) -> None:
        mask = np.array([True, False])
        assert both(None, None) is None
        assert both(mask, None) is mask
        assert both(mask, ~mask).tolist() == [False, False]  # type: ignore[union-attr]


class TestBudget:
    def test_it_fills_with_its_share_and_saves_up_little(self) -> None:
        budget = Budget(0.1)
        assert budget.wait_s(100.0) == 0
        budget.spend(BURST_S + 0.1)
        assert budget.wait_s(100.0) == pytest.approx(1.0)
        assert budget.wait_s(100.5) == pytest.approx(0.5)
        assert budget.wait_s(101.01) == 0
        assert budget.wait_s(1000.0) == 0
        budget.spend(BURST_S)
        assert budget.wait_s(1000.0) == 0  # no more than that had been saved
        budget.spend(0.01)
        assert budget.wait_s(1000.0) == pytest.approx(0.1)
        assert budget.spent_s == pytest.approx(2 * BURST_S + 0.11)

    def test_the_load_is_what_is_not_the_shadows(self) -> None:
        load = Load()
        load.look(10.0, 1.0)
        assert load.share == 0
        assert not load.due(10.05)
        load.own_s += 0.02
        assert load.due(10.2)
        load.look(10.2, 1.12)
        assert load.share == pytest.approx(0.5)

    @pytest.mark.parametrize(
        "wrong",
        [{"slice_us": 0}, {"cpu_share": 0}, {"cpu_share": 1.5}, {"load_max": 0}, {"wait_max_s": 0}, {"linger_ms": -1}],
    )
    def test_options_that_make_no_sense_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShadowOptions(**wrong)


class TestComparing:
    def compared(self, primary: Any, shadow: Any, rows: list[int], answered: Any = None) -> Any:
        plan = SimpleNamespace(outputs=("score",), bindings=())
        answers = SimpleNamespace(requests=[SimpleNamespace(rows=n) for n in rows], outputs=[shadow])
        return SimpleNamespace(
            primary=SimpleNamespace(plan=plan), shadow=answers, outputs=[primary], blocks={}, answered=answered
        )

    def test_pairs_add_up(self) -> None:
        rng = np.random.default_rng(3)
        primary, shadow = rng.random((40, 1), np.float32), rng.random((40, 1), np.float32)
        compare = Compare(paired=PairedOptions(threshold=0.5))
        whole, one, other = Pair(), Pair(), Pair()
        whole.add(self.compared(primary, shadow, [1] * 40), compare)
        one.add(self.compared(primary[:15], shadow[:15], [1] * 15), compare)
        other.add(self.compared(primary[15:], shadow[15:], [1] * 25), compare)
        one += other
        assert one.rows == whole.rows == 40
        summary, expected = one.summary()["outputs"]["score"], whole.summary()["outputs"]["score"]
        for name in ("mean_difference", "pearson", "decision_flips", "share_beyond_tolerance"):
            assert summary[name] == pytest.approx(expected[name])

    def test_rows_that_a_check_replaced_are_left_out(self) -> None:
        primary, shadow = np.zeros((4, 1), np.float32), np.float32([[1], [9], [1], [1]])
        pair = Pair()
        pair.add(self.compared(primary, shadow, [2, 2], np.array([True, False, True, True])), Compare())
        assert (pair.rows, pair.replaced) == (4, 1)
        assert pair.outputs["score"].difference.mean == 1.0

    @pytest.mark.parametrize(
        "shadow", [np.zeros((4, 2), np.float32), np.array([["a"]] * 4, object), np.zeros(4, np.float32)]
    )
    def test_what_cannot_be_paired_is_counted(self, shadow: Any) -> None:
        pair = Pair()
        pair.add(self.compared(np.zeros((4, 1), np.float32), shadow, [4]), Compare())
        assert pair.unpaired == 4
        assert pair.outputs == {}

    def test_an_element_of_a_wide_output_is_compared(self) -> None:
        primary, shadow = np.float32([[1, 2], [3, 4]]), np.float32([[1, 5], [3, 4]])
        pair = Pair()
        pair.add(self.compared(primary, shadow, [1, 1]), Compare(position=1))
        assert pair.outputs["score"].difference.mean == 1.5

    def test_columns_count_what_changed_and_nan_is_equal_to_itself(self) -> None:
        column = ColumnDifference()
        column.add(np.float32([1, np.nan, 3]), np.float32([1, np.nan, 5]))
        assert column.summary() == {
            "rows": 3, "share_changed": 1 / 3, "mean_difference": 1.0, "deviation": pytest.approx(2**0.5),
        }  # fmt: skip

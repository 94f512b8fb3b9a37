"""Counts of hot ids against exact ones: never above, and never more than `missed` below, in any order."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from featureclient.schema import Id
from featureclient.warmup import HotKeys, Together
from featureclient.warmup.hotkeys import HELD_MAX

VIEW = "v@1"
ids = st.one_of(st.integers(0, 40), st.sampled_from(["a", "b", ""]), st.tuples(st.text(max_size=2), st.integers(0, 2)))
steps = st.lists(
    st.one_of(
        st.lists(ids, max_size=30).map(lambda some: ("offer", some)),
        st.sampled_from([0.0, 0.3, 0.9, 1.0]).map(lambda factor: ("decay", factor)),
        st.just(("pack", None)),
        st.just(("split", None)),
    ),
    max_size=25,
)
EPS = 1e-6


class Counted:
    """Counts, and the truth about them."""

    def __init__(self, keys_max: int) -> None:
        self.hot = HotKeys(keys_max)
        self.truth: defaultdict[Id, float] = defaultdict(float)

    def check(self) -> None:
        missed = self.hot.missed(VIEW)
        for one, true in self.truth.items():
            count = self.hot.count(VIEW, one)
            assert count <= true + EPS
            assert true <= count + missed + EPS
        for one, _ in self.hot.ranked(VIEW, 10**6):
            assert one in self.truth
        assert len(self.hot) <= HELD_MAX * self.hot.keys_max


def run(counted: Counted, done: list[tuple[str, object]]) -> list[Counted]:
    """Do the steps; a split goes on with new counts, as another replica would."""
    replicas = [counted]
    for what, how in done:
        counted = replicas[-1]
        if what == "offer":
            assert isinstance(how, list)
            counted.hot.offer(VIEW, how)
            for one in how:
                counted.truth[one] += 1
        elif what == "decay":
            assert isinstance(how, float)
            counted.hot.decay(how)
            for one in counted.truth:
                counted.truth[one] *= how
        elif what == "pack":
            counted.hot = HotKeys.from_bytes(counted.hot.to_bytes(), counted.hot.keys_max)
        else:
            replicas.append(Counted(counted.hot.keys_max))
        counted.check()
    return replicas


@given(st.integers(1, 12), steps, st.randoms(use_true_random=False))
def test_counts_are_never_above_the_truth_and_at_most_missed_below(keys_max: int, done: list, random) -> None:  # type: ignore[no-untyped-def, type-arg]  # noqa: ANN001
    replicas = run(Counted(keys_max), done)
    random.shuffle(replicas)
    merged = Counted(keys_max)
    for replica in replicas:
        merged.hot.merge(replica.hot)
        for one, true in replica.truth.items():
            merged.truth[one] += true
        merged.check()


@given(st.lists(st.tuples(ids, ids), max_size=200), st.integers(2, 10), st.integers(1, 3))
def test_companions_were_seen_together_and_are_bounded(
    pairs: list[tuple[Id, Id]], ids_max: int, companions_max: int
) -> None:
    together = Together(ids_max, companions_max, seen_min=1)
    for a, b in pairs:
        together.seen([a], [b])
        assert len(together) <= ids_max
    for a in {a for a, _ in pairs}:
        companions = together.ahead([a])
        assert len(companions) <= companions_max
        assert {(a, b) for b in companions} <= set(pairs)

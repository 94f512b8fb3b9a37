"""Which works there are, and how they are grouped."""

from loadtest.works import QUICK, all_works, choose_works, group_by_baseline


def test_the_list_of_works_is_fixed() -> None:
    assert [work.name for work in all_works()] == [
        "predict/1/warm/1",
        "predict/1/cold/1",
        "predict/1/warm/16",
        "predict/1/cold/16",
        "predict/1/warm/64",
        "predict/1/cold/64",
        "predict/200/warm/1",
        "predict/200/cold/1",
        "predict/200/warm/4",
        "predict/200/cold/4",
        "predict/200/warm/16",
        "predict/200/cold/16",
        "echo/1",
        "echo/64",
        "echo-tls/64",
    ]


def test_works_are_chosen_by_pattern_and_keep_their_order() -> None:
    works = all_works()

    chosen = choose_works(works, ["echo/*", "predict/1/warm/64"])

    assert [work.name for work in chosen] == ["predict/1/warm/64", "echo/1", "echo/64"]
    assert choose_works(works, []) == works
    assert choose_works(works, ["nothing"]) == []


def test_warm_and_cold_share_the_run_of_a_baseline_that_has_no_cache() -> None:
    groups = group_by_baseline(all_works())

    assert [[work.name for work in group] for group in groups.values()][2] == ["predict/1/warm/64", "predict/1/cold/64"]
    assert len(groups) == 9
    for baseline, group in groups.items():
        assert all(work.headrace.rows == baseline.rows for work in group)
        assert all(work.headrace.in_flight == baseline.in_flight for work in group)


def test_quick_measures_for_less_than_two_minutes() -> None:
    works = all_works()
    runs = QUICK.rounds * (len(works) + len(group_by_baseline(works)))

    starting_a_client_s = 0.1
    assert runs * (QUICK.seconds + QUICK.warmup_s + starting_a_client_s) < 100

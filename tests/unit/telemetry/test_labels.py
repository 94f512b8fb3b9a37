from gateway.telemetry.labels import OTHER, Labelled


def test_values_beyond_the_bound_share_one_entry() -> None:
    entries: Labelled[list[str]] = Labelled(list, values_max=2)
    for value in ("a", "b", "c", "d", "a"):
        entries[value].append(value)
    assert entries == {"a": ["a", "a"], "b": ["b"], OTHER: ["c", "d"]}

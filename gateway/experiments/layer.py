"""Which arm each id gets in a layer: of experiments that exclude each other, or of one alone. Pure.

A *choice* is a number: 0 for nobody's, else one arm of one experiment of the layer. One hash finds the experiment, and
one more the arm; where an experiment has come to an end with an arm for everybody, there is nothing to hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.experiments.assignment import Assignment, EntityId, Stretches
from gateway.experiments.experiment import Experiment


@dataclass(frozen=True, slots=True)
class _Member:
    """A running experiment of a layer. Its arm `i` is the choice `first + i`."""

    place: int
    arms: Stretches
    first: int
    only: int | None
    """The choice of everybody, where all get one arm."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Running experiments of one model that no two of them share an entity of."""

    by: str
    choices: tuple[tuple[str, str] | None, ...]
    """Per choice the experiment and the arm; None for nobody's."""
    _stretches: Stretches | None
    _members: tuple[_Member, ...]
    _named: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, experiments: Sequence[Experiment], everybody: dict[str, str]) -> "Layer":
        """Of running experiments of one layer, or of one that has none.

        `everybody`: experiment -> the arm that all get whom it has.
        """
        choices: list[tuple[str, str] | None] = [None]
        members: list[_Member] = []
        named: dict[str, int] = {}
        first_assignment = _assignment_of(experiments[0])
        for one in experiments:
            assignment = _assignment_of(one)
            first = len(choices)
            names = assignment.arms.names
            choices += [(one.name, arm) for arm in names]
            only = everybody.get(one.name)
            if only is None:
                named.update({text: first + arm for text, arm in (assignment.overrides or {}).items()})
            members.append(
                _Member(
                    assignment.in_layer, assignment.arms, first, None if only is None else first + names.index(only)
                )
            )
        by = experiments[0].by
        assert by is not None
        return cls(by, tuple(choices), first_assignment.layer, tuple(members), named)

    def choose(self, ids: Sequence[EntityId]) -> list[int]:
        """The choice of each id."""
        stretches = self._stretches
        chosen = _arms(self._members[0], ids) if stretches is None else self._in_layer(stretches, ids)
        if self._named:
            named = self._named
            chosen = [named.get(str(one), choice) for one, choice in zip(ids, chosen, strict=True)]
        return chosen

    def _in_layer(self, stretches: Stretches, ids: Sequence[EntityId]) -> list[int]:
        places = stretches.find(ids)
        chosen = [0] * len(ids)
        for member in self._members:
            at = [index for index, place in enumerate(places) if place == member.place]
            if at:
                for index, choice in zip(at, _arms(member, [ids[index] for index in at]), strict=True):
                    chosen[index] = choice
        return chosen


def _arms(member: _Member, ids: Sequence[EntityId]) -> list[int]:
    if member.only is not None:
        return [member.only] * len(ids)
    return member.arms.find(ids, member.first)


def _assignment_of(experiment: Experiment) -> Assignment:
    assert experiment.assignment is not None
    return experiment.assignment

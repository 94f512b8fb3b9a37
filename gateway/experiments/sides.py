"""Which variant of an experiment is the one that is there, and which are those that might replace it."""

from gateway.experiments.form import ExperimentForm


def baseline_of(form: ExperimentForm) -> str | None:
    """The arm to go back to; None for a shadow, whose baseline is the model as it is served.

    Of a split it is the arm that changes nothing, and the first where every arm changes something.
    """
    if form.canary is not None:
        return form.canary.baseline
    if form.split is None:
        return None
    arms = [*form.split.weights]
    untouched = [name for name in arms if not form.variants[name].model_dump(exclude_defaults=True)]
    return (untouched or arms)[0]


def candidates_of(form: ExperimentForm) -> list[str]:
    """The arms that are compared with the baseline."""
    if form.shadow is not None:
        return [*form.shadow.variants]
    if form.canary is not None:
        return [form.canary.candidate]
    assert form.split is not None
    baseline = baseline_of(form)
    return [name for name in form.split.weights if name != baseline]

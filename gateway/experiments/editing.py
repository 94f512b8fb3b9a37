"""What an operator does to an experiment, as an edit of the text of experiments.yaml: comments and order stay.

    start      state: running, and no arm is everybody's any more; a canary gets its next attempt
    stop       state: stopped
    promote    everybody: the candidate; the experiment keeps running, so that whom it has gets it
    rollback   everybody: the baseline; a shadow, which answers nobody, is stopped

Pure: text goes in, text comes out. Who writes it checks it first.
"""

from collections.abc import MutableMapping
from io import StringIO
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.util import load_yaml_guess_indent

from gateway.experiments.form import ExperimentForm, ExperimentsForm
from gateway.experiments.sides import baseline_of, candidates_of

Action = Literal["start", "stop", "promote", "rollback"]
_DEFAULT_STATE = "running"
_WIDTH = 1 << 20
"""No line is folded that was not."""


class EditError(ValueError):
    """Something that cannot be done to this experiment. The message says what can."""


def edited(text: str, form: ExperimentsForm, name: str, action: Action, arm: str | None = None) -> str:
    """The text of the file afterwards. `form` is what the text says now; `arm` is whom to promote. Raises EditError."""
    if name not in form.experiments:
        raise EditError(f"no experiment {name!r} (there are: {', '.join(form.experiments) or 'none'})")
    fields = _fields(name, form.experiments[name], action, arm)
    _, indent, offset = load_yaml_guess_indent(text)
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    yaml.indent(mapping=_step(text), sequence=indent or 2, offset=offset or 0)
    content = yaml.load(text)
    _set(content["experiments"][name], fields)
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def _fields(name: str, form: ExperimentForm, action: Action, arm: str | None) -> dict[str, Any]:
    """What to set; None takes a field away."""
    if arm is not None and action != "promote":
        raise EditError(f"{action} takes no variant")
    match action:
        case "start":
            fields: dict[str, Any] = {"state": "running", "everybody": None}
            if form.canary is not None and (form.everybody is not None or form.state == "stopped"):
                fields["canary"] = {"attempt": form.canary.attempt + 1}
            return fields
        case "stop":
            return {"state": "stopped"}
        case "promote":
            return {"state": "running", "everybody": _promoted(name, form, arm)}
        case "rollback":
            baseline = baseline_of(form)
            return {"state": "stopped"} if baseline is None else {"state": "running", "everybody": baseline}


def _promoted(name: str, form: ExperimentForm, arm: str | None) -> str:
    if form.shadow is not None:
        raise EditError(
            f"{name!r} is a shadow and answers nobody: write a canary or a split of its variant to promote it"
        )
    candidates = candidates_of(form)
    if arm is None:
        if len(candidates) > 1:
            raise EditError(f"{name!r} has several candidates: name one of {', '.join(candidates)}")
        return candidates[0]
    arms = [*candidates, str(baseline_of(form))]
    if arm not in arms:
        raise EditError(f"{arm!r} is no arm of {name!r} (they are: {', '.join(arms)})")
    return arm


def _set(node: MutableMapping[str, Any], fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if value is None:
            node.pop(key, None)
        elif isinstance(value, dict):
            _set(node[key], value)
        elif key in node:
            node[key] = value
        elif value == _DEFAULT_STATE:
            continue
        else:
            # Beside the model, where it is seen: at the end it would stand behind the comments that follow.
            keys = [*node]
            node.insert(keys.index("model") + 1 if "model" in keys else 0, key, value)  # type: ignore[attr-defined]  # ruamel's mapping has it


def _step(text: str) -> int:
    """How far the first nested mapping of the file is indented."""
    for line in text.splitlines():
        stripped = line.lstrip(" ")
        if stripped and not stripped.startswith(("#", "-")) and len(line) > len(stripped):
            return len(line) - len(stripped)
    return 2

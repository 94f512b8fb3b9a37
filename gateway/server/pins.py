"""Which models pin which views, and the columns of them that they read: from manifests, without loading a graph."""

from pathlib import Path

from featureclient.schema import document
from gateway.plan import Manifest
from gateway.plan.expression import expression_names


def pins_of(models: Path) -> dict[str, dict[str, frozenset[str]]]:
    """View -> model -> columns, over every manifest of a model repository. Raises ConfigError for a bad one."""
    pins: dict[str, dict[str, set[str]]] = {}
    for path in sorted(models.glob("*/model.yaml")):
        manifest = document.load(path, Manifest)
        columns = _columns_of(manifest)
        for alias, use in manifest.views.items():
            read = {column for owner, column in columns if owner == alias}
            pins.setdefault(use.view, {}).setdefault(path.parent.name, set()).update(read)
    return {
        ref: {model: frozenset(columns) for model, columns in sorted(pinned.items())} for ref, pinned in pins.items()
    }


def _columns_of(manifest: Manifest) -> list[tuple[str, str]]:
    """The stored columns that a manifest names, as (alias, column)."""
    named = [name for names in manifest.inputs.values() for name in names]
    named += [name for use in manifest.transforms for name in use.inputs.values()]
    named += [name for use in manifest.derive.values() for name in expression_names(use.expression)]
    split = [name.partition(".") for name in named]
    return [(alias, column) for alias, dot, column in split if dot]

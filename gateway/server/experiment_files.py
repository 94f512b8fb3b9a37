"""experiments.yaml where no server runs: read and checked against the files of models and views, and written back.

    settings ─▶ model.yaml of every model, the catalogue ─▶ shapes ─▶ the experiments
    an edit of the text ─▶ checked ─▶ beside the file ─▶ renamed over it; a server that follows the file takes it up

Invariant: what is written has passed the checks that a server makes of names; a file that somebody else has changed
meanwhile is not written over.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from featureclient.schema import Catalogue, ConfigError, document
from gateway.experiments.editing import EditError
from gateway.experiments.experiment import Experiment, checked
from gateway.experiments.form import ExperimentsForm
from gateway.plan import Manifest
from gateway.server.settings import Settings


@dataclass(frozen=True, slots=True)
class FileShape:
    """What experiments have to know of a model, by its files."""

    versions: Sequence[int]
    views: Mapping[str, str]
    columns: Sequence[str]
    functions: Sequence[str]


def path_of(settings: Settings, named: Path | None) -> Path:
    """The file that was named, or that of the settings. Raises EditError where there is none."""
    path = named or settings.experiments
    if path is None:
        raise EditError("no experiments.yaml: set `experiments` in the settings, or name the file with --experiments")
    return path


def read(settings: Settings, path: Path) -> tuple[Experiment, ...]:
    """The experiments of the file. Raises ConfigError with every problem."""
    return _checked(settings, document.read(path))


def edit(settings: Settings, path: Path, change: Callable[[str, ExperimentsForm], str]) -> None:
    """Change the file's text. Raises ConfigError, EditError and OSError, and then the file is as it was."""
    path = path.resolve()  # a link stays one
    before = document.read(path)
    text = path.read_text(encoding="utf-8")
    after = change(text, document.validate(before, ExperimentsForm))
    _checked(settings, document.parse(after, str(path)))
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        beside = Path(file.name)
        try:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            if path.read_text(encoding="utf-8") != text:
                raise EditError(f"{path} was changed by somebody else meanwhile; look at it, and try again")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _checked(settings: Settings, source: document.Document) -> tuple[Experiment, ...]:
    catalogue = Catalogue.load(settings.catalogue)
    return checked(source, _shapes(settings.models, catalogue), list(catalogue.views))


def _shapes(models: Path, catalogue: Catalogue) -> dict[str, FileShape]:
    """Of every model of a repository's folder."""
    folders = sorted({path.parent.parent for path in models.glob("*/*/model.onnx")})
    return {folder.name: _shape(folder, catalogue) for folder in folders}


def _shape(folder: Path, catalogue: Catalogue) -> FileShape:
    versions = sorted(int(path.parent.name) for path in folder.glob("*/model.onnx") if path.parent.name.isdigit())
    path = folder / "model.yaml"
    if not path.is_file():
        return FileShape(versions, {}, (), ())
    manifest = document.load(path, Manifest)
    columns: dict[str, None] = {}
    for use in manifest.views.values():
        view = catalogue.views.get(use.view)
        if view is None:
            source = document.read(path)
            raise ConfigError([source.problem(("views",), f"no view {use.view!r} in the catalogue")])
        columns |= {use.keys.get(key.name, key.name): None for key in view.entity.join_keys}
    views = {alias: use.view for alias, use in manifest.views.items()}
    return FileShape(versions, views, [*columns], [use.function for use in manifest.transforms])

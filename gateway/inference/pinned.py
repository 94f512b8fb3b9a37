"""Transform code is what it was when it was first used: a process cannot have two versions of a Python module.

A manifest that names code whose source has changed since is refused, with the advice to restart. Loading it all the
same would run the old code and call it the new one.
"""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from gateway.plan.transform import Function, Resolve, TransformError

SOURCE_BYTES_MAX = 16 << 20
NEEDS_RESTART = "the new code needs a restart of the server"


class PinnedResolve:
    """Resolves `module:function`, and remembers what the source of the module was when that was done first."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._pins: dict[str, dict[Path, str]] = {}
        self._imported: dict[Path, str] = {}
        """Every file that came with a module, as it was then."""

    def __repr__(self) -> str:
        return f"<PinnedResolve {', '.join(self._pins) or 'nothing yet'}>"

    def __call__(self, reference: str) -> Function:
        """The function. Raises TransformError where it cannot be had, or its source has changed."""
        module = reference.partition(":")[0]
        pins = self._pins.get(module)
        if pins is not None:
            for path, pin in pins.items():
                if _hash_of(path) != pin:
                    raise TransformError(f"{path} has changed since {module} was imported; {NEEDS_RESTART}")
            return self._resolve(reference)
        before = {*sys.modules}
        function = self._resolve(reference)
        pins = {path: _hash_of(path) for path in _sources(module)}
        for path, pin in pins.items():
            if self._imported.setdefault(path, pin) != pin:
                raise TransformError(f"{path} has changed since another module imported it; {NEEDS_RESTART}")
        # What came with it is old from now on, even if no manifest names it before its file has changed.
        for path in _files({*sys.modules} - before):
            self._imported.setdefault(path, _hash_of(path))
        self._pins[module] = pins
        return function


def sources_of(references: Iterable[str]) -> dict[str, str]:
    """The modules of these `module:function`, which are imported, and the SHA-256 of each one's own source."""
    found = {}
    for module in sorted({reference.partition(":")[0] for reference in references}):
        file = getattr(sys.modules.get(module), "__file__", None)
        found[module] = _hash_of(Path(file)) if file else ""
    return found


def _sources(module: str) -> list[Path]:
    """The files of a module, and those of its package that are imported."""
    package = module.partition(".")[0]
    return _files([name for name in tuple(sys.modules) if name == package or name.startswith(f"{package}.")])


def _files(names: Iterable[str]) -> list[Path]:
    """The source files of imported modules."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return sorted({Path(file) for file in files if file and file.endswith(".py")})


def _hash_of(path: Path) -> str:
    """SHA-256 of a source file; empty where it cannot be read, which is no change of what was there."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(SOURCE_BYTES_MAX)).hexdigest()
    except OSError:
        return ""

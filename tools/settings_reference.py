"""Write docs/configuration.md from the settings themselves: `python -m tools.settings_reference [--check]`.

Names, types and defaults come from the classes, the meaning from the string under each field: there is one place to say
it.
"""

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from gateway.server.settings import Settings

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
HEAD = """\
# Configuration

`headrace serve --config headrace.yaml` reads one YAML file. Relative paths are relative to that file. A field in the
environment wins: `HEADRACE_` and the path of the field with `__` between its parts. Where the field is a string, the
value is taken as it is, without quotes: `HEADRACE_STORE__URL=redis://cache:6379/0`, and any password. Elsewhere it is
YAML: `HEADRACE_GRPC__LISTEN='["0.0.0.0:8500"]'`. What is unknown or wrong is reported with file, line and field, all at
once, and the server does not start.

This page is written by `make settings-reference`.
"""


def page() -> str:
    """The page as it should be."""
    return "\n".join([HEAD, "## Top level\n", *_table(Settings, _top_level()), *_sections(), ""])


def _top_level() -> Iterator[tuple[str, str, str]]:
    for name, field in Settings.model_fields.items():
        if not _is_section(field.annotation):
            default = "required" if field.is_required() else _shown(field.default)
            yield name, _type(field.annotation), default


def _sections() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        if _is_section(field.annotation):
            yield from _section(name, field.annotation)


def _section(path: str, options: Any) -> Iterator[str]:
    summary = inspect.getdoc(options) or ""
    yield f"\n## `{path}`\n\n{' '.join(summary.split())}\n"
    own = [field for field in fields(options) if field.init]
    kinds = get_type_hints(options)
    rows = (
        (field.name, _type(kinds[field.name]), _default(field)) for field in own if not _is_section(kinds[field.name])
    )
    yield from _table(options, rows)
    for field in own:
        for kind in (kinds[field.name], *getattr(kinds[field.name], "__args__", ())):
            if _is_section(kind):
                yield from _section(f"{path}.{field.name}", kind)


def _table(owner: type, rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    said = _meanings(owner)
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for name, kind, default in rows:
        yield f"| `{name}` | {kind} | {default} | {said.get(name, '')} |"


def _meanings(owner: type) -> dict[str, str]:
    """The string under each field of a class, and of the options that it extends."""
    found = {}
    for each in reversed(owner.__mro__):
        if each is not owner and not is_dataclass(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return found


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return (
        "`"
        + text.replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "").replace("|", "or")
        + "`"
    )


def _default(field: Any) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    return _shown(field.default if field.default is not MISSING else field.default_factory())


def _shown(value: Any) -> str:
    return "none" if value is None else f"`{list(value) if isinstance(value, tuple) else value}`"


def main() -> int:
    """Write the page, or with `--check` say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE.name} is out of date: run `make settings-reference`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

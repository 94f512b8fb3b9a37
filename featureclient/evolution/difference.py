"""What differs between two catalogues, or between two views, as data. Whether that breaks anything is `checking`'s."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from featureclient.schema import Catalogue, Column, Entity, PythonCompute, View

Kind: TypeAlias = Literal["added", "removed", "widened", "narrowed", "retyped", "reordered", "changed"]

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
NONE = "-"
"""What stands for a value that one of the two sides has not."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `subject` is a view, an entity or a source; `field` what of it, as `columns.flights.default`."""

    kind: Kind
    subject: str
    field: str
    before: str
    after: str


def catalogue_changes(old: Catalogue, new: Catalogue) -> list[Change]:
    """Everything that differs, entities first, then views in the order in which they are declared."""
    changes = []
    if old.namespace != new.namespace:
        changes.append(Change("changed", "catalogue", "namespace", old.namespace, new.namespace))
    for name in dict.fromkeys([*old.entities, *new.entities]):
        changes += _entity_changes(name, old.entities.get(name), new.entities.get(name))
    for name in dict.fromkeys([*old.sources, *new.sources]):
        before, after = old.sources.get(name), new.sources.get(name)
        if before is None or after is None:
            kind: Kind = "added" if before is None else "removed"
            changes.append(Change(kind, f"source {name}", "", _said(before), _said(after)))
        elif type(before) is not type(after) or before != after:
            changes.append(Change("changed", f"source {name}", "", _said(before), _said(after)))
    for ref in dict.fromkeys([*old.views, *new.views]):
        was, now = old.views.get(ref), new.views.get(ref)
        if was is not None and now is not None:
            changes += view_changes(was, now)
        else:
            kind = "added" if was is None else "removed"
            changes.append(Change(kind, ref, "", _summary(was), _summary(now)))
    return changes


def view_changes(old: View, new: View) -> list[Change]:
    """What differs between two views: one in two catalogues, or two versions in one."""
    subject = old.ref if old.ref == new.ref else f"{old.ref} {new.ref}"
    changes = []
    if old.entity != new.entity:
        changes.append(Change("changed", subject, "entity", said_entity(old.entity), said_entity(new.entity)))
    changes += _column_changes(subject, old, new)
    if old.ref == new.ref:
        changes += _revision_changes(subject, old, new)
    for field, before, after in (
        ("max_age", said_ms(old.max_age_ms), said_ms(new.max_age_ms)),
        ("ttl", said_ms(old.ttl_ms), said_ms(new.ttl_ms)),
        ("soft_age", said_ms(old.soft_age_ms), said_ms(new.soft_age_ms)),
        ("hard_age", said_ms(old.hard_age_ms), said_ms(new.hard_age_ms)),
        ("on_missing", old.on_missing, new.on_missing),
        ("compute", said_compute(old), said_compute(new)),
        ("prefetch", ", ".join(old.prefetch) or NONE, ", ".join(new.prefetch) or NONE),
        ("combine", ", ".join(old.combine) or NONE, ", ".join(new.combine) or NONE),
    ):
        if before != after:
            changes.append(Change("changed", subject, field, before, after))
    return changes


def _entity_changes(name: str, old: Entity | None, new: Entity | None) -> Iterator[Change]:
    if old != new:
        kind: Kind = "added" if old is None else "removed" if new is None else "changed"
        yield Change(kind, f"entity {name}", "", said_entity(old), said_entity(new))


def _column_changes(subject: str, old: View, new: View) -> Iterator[Change]:
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            kind: Kind = "added" if was is None else "removed"
            yield Change(kind, subject, f"columns.{name}", said_column(was), said_column(now))
            continue
        if was.dtype != now.dtype:
            yield Change(_dtype_change(was, now), subject, f"columns.{name}", str(was.dtype), str(now.dtype))
        if not _same(was.default, now.default):
            yield Change("changed", subject, f"columns.{name}.default", _said(was.default), _said(now.default))
    kept_before = [name for name in before if name in after]
    kept_after = [name for name in after if name in before]
    if kept_before != kept_after:
        yield Change("reordered", subject, "columns", ", ".join(kept_before), ", ".join(kept_after))


def _revision_changes(subject: str, old: View, new: View) -> Iterator[Change]:
    before = {revision.fingerprint: revision for revision in old.revisions}
    after = {revision.fingerprint: revision for revision in new.revisions}
    for fingerprint in dict.fromkeys([*before, *after]):
        if fingerprint not in after or fingerprint not in before:
            columns = said_columns((before.get(fingerprint) or after[fingerprint]).columns)
            gone = fingerprint not in after
            sides = (columns, NONE) if gone else (NONE, columns)
            yield Change("removed" if gone else "added", subject, f"revisions.{fingerprint:08x}", *sides)


def _dtype_change(old: Column, new: Column) -> Kind:
    if old.dtype.widens_to(new.dtype):
        return "widened"
    return "narrowed" if new.dtype.widens_to(old.dtype) else "retyped"


def _same(old: Any, new: Any) -> bool:
    """Defaults may be NaN, which is not equal to itself."""
    return repr(old) == repr(new)


def said_ms(milliseconds: int | None) -> str:
    """A duration in the largest unit that holds it whole, as a catalogue has it."""
    if milliseconds is None:
        return NONE
    unit, size = next((unit, size) for unit, size in _UNITS_MS if milliseconds % size == 0)
    return f"{milliseconds // size}{unit}"


def said_entity(entity: Entity | None) -> str:
    """`plane (tailnum: string)`."""
    if entity is None:
        return NONE
    return f"{entity.name} ({', '.join(f'{key.name}: {key.dtype}' for key in entity.join_keys)})"


def said_column(column: Column | None) -> str:
    """`int32, default 0`."""
    if column is None:
        return NONE
    return str(column.dtype) + ("" if column.default is None else f", default {column.default!r}")


def said_columns(columns: tuple[Column, ...]) -> str:
    """`{flights: int16, "embedding": "float32[4]"}`: a revision, as a catalogue has it."""
    pairs = [(column.name, str(column.dtype)) for column in columns]
    # A bracket inside a flow mapping would be a list.
    return "{" + ", ".join(f'{name}: "{dtype}"' if "[" in dtype else f"{name}: {dtype}" for name, dtype in pairs) + "}"


def said_compute(view: View) -> str:
    """What computes a view's rows, and its limits."""
    compute = view.compute
    if compute is None:
        return NONE
    if isinstance(compute, PythonCompute):
        what = f"python {compute.function}"
    else:
        what = f"sql on {compute.source}: {' '.join(compute.sql.split())}"
    return (
        f"{what} (timeout {compute.timeout_ms}ms, {compute.batch_rows_max} rows a batch, "
        f"{compute.concurrency_max} at once, {'' if compute.write_back else 'no '}write-back)"
    )


def _summary(view: View | None) -> str:
    if view is None:
        return NONE
    return f"view of {view.entity.name}, {len(view.columns)} columns, fingerprint {view.fingerprint:08x}"


def _said(value: Any) -> str:
    return NONE if value is None else repr(value)

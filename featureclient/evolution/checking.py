"""Would this change break a reader, a model, or rows that are stored? Decided from values; nothing here reads anything.

A row that is stored has the fingerprint of the columns that it was written with. A catalogue in which a view's columns
changed, and the columns of before are not among its `revisions`, knows that fingerprint no more: every stored row is
INVALID from the moment on at which it is loaded. That is what `check` is for, and its advice is the YAML to add.

Severities. `breaking`: requests fail, or stored rows cannot be read. `warning`: requests get other values or statuses
than before, which a model that was trained on those of before should know. `note`: worth knowing, harms nobody.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from featureclient.evolution.difference import said_columns, said_entity, said_ms
from featureclient.schema import Catalogue, Column, Revision, View, status

Severity: TypeAlias = Literal["breaking", "warning", "note"]

Pins: TypeAlias = Mapping[str, Mapping[str, frozenset[str]]]
"""View -> model -> the columns of the view that the model reads."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What was found of a view version in the store.

    `fingerprints` counts the rows that were looked at, by their fingerprint; `invalid` those of a known revision which
    are refused all the same, by reason. `complete` is False when there were more than were looked at.
    """

    ref: str
    rows: int = 0
    fingerprints: Mapping[int, int] = field(default_factory=Counter)
    invalid: Mapping[str, int] = field(default_factory=Counter)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know before a catalogue is loaded. `advice` is what to do, empty where there is nothing."""

    severity: Severity
    subject: str
    what: str
    advice: str = ""


def check(
    new: Catalogue,
    old: Catalogue | None = None,
    *,
    pins: Pins | None = None,
    stored: Mapping[str, StoredRows] | None = None,
) -> list[Finding]:
    """What `new` would do to readers, models and stored rows; the worst first.

    `old` is the catalogue of before; without it only `stored` is judged. `pins` and `stored` are left out where nothing
    is known. Whether a model still compiles is for those to say who can compile it.
    """
    checker = _Checker(new, pins or {}, stored or {})
    findings = [*checker.stored_rows(old.views if old is not None else {})]
    if old is not None:
        findings += checker.against(old)
    order: tuple[Severity, ...] = ("breaking", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


class _Checker:
    def __init__(self, new: Catalogue, pins: Pins, stored: Mapping[str, StoredRows]) -> None:
        self._new = new
        self._pins = pins
        self._stored = stored

    def stored_rows(self, before: Mapping[str, View]) -> Iterator[Finding]:
        """Rows that the new catalogue cannot read; those that it could before are `against`'s."""
        for ref, found in self._stored.items():
            view = self._new.views.get(ref)
            if view is None:
                continue
            sample = "" if found.complete else " of the rows that were looked at"
            known = {revision.fingerprint for revision in (*view.revisions, view.newest)}
            was = before.get(ref)
            lost = set() if was is None else {revision.fingerprint for revision in (*was.revisions, was.newest)} - known
            for fingerprint, rows in found.fingerprints.items():
                if fingerprint in lost:
                    continue
                if fingerprint not in known:
                    yield Finding(
                        "breaking",
                        ref,
                        f"{rows:,}{sample} have the fingerprint {fingerprint:08x}, which no revision has: INVALID",
                        "list the columns that they were written with under `revisions:`, or load the view again",
                    )
                elif fingerprint != view.fingerprint:
                    yield Finding("note", ref, f"{rows:,}{sample} are of revision {fingerprint:08x}, upgraded on read")
            for reason, rows in found.invalid.items():
                yield Finding("warning", ref, f"{rows:,}{sample} are INVALID ({reason})", "load these rows again")

    def against(self, old: Catalogue) -> Iterator[Finding]:
        if old.namespace != self._new.namespace:
            yield Finding(
                "breaking",
                "catalogue",
                f"the namespace changes from {old.namespace!r} to {self._new.namespace!r}: no stored row is found",
                "load every view again under the new one, or keep the namespace",
            )
        for ref, was in old.views.items():
            now = self._new.views.get(ref)
            if now is None:
                yield from self._removed(was)
            else:
                yield from self._changed(was, now)
        for ref in self._new.views.keys() - old.views.keys():
            yield Finding("note", ref, "is new: rows are absent until they are loaded or computed")

    def _removed(self, was: View) -> Iterator[Finding]:
        models = self._pins.get(was.ref, {})
        if models:
            yield Finding(
                "breaking",
                was.ref,
                f"is removed, and models pin it: {', '.join(models)}",
                "keep it until no model uses it; versions live side by side",
            )
        else:
            yield Finding(
                "warning",
                was.ref,
                "is removed: readers get an error that names the views that exist",
                f"when nobody reads it any more, `headrace features drop {was.ref}` deletes its stored rows",
            )

    def _changed(self, was: View, now: View) -> Iterator[Finding]:
        if was.entity != now.entity:
            yield Finding(
                "breaking",
                was.ref,
                f"changes its entity from {said_entity(was.entity)} to {said_entity(now.entity)}: keys are made of it, "
                "so stored rows are not found, and requests have to send other ids",
                f"make it a new version: {self._next_version(now)}",
            )
        if was.combine != now.combine:
            yield Finding(
                "breaking",
                was.ref,
                f"combines {_listed(now.combine)} instead of {_listed(was.combine)}; stored rows are of those",
                f"make it a new version, {self._next_version(now)}, and run `headrace features combine` for it",
            )
        elif not now.combine:  # the revisions of a combined view follow from its members', which are checked
            yield from self._layouts(was, now)
        yield from self._columns(was, now)
        yield from self._rules(was, now)

    def _layouts(self, was: View, now: View) -> Iterator[Finding]:
        """Are all layouts that rows may be stored in still known?"""
        known = {revision.fingerprint for revision in (*now.revisions, now.newest)}
        layouts = [*was.revisions, was.newest]
        lost = [revision for revision in layouts if revision.fingerprint not in known]
        if not lost:
            if was.fingerprint != now.fingerprint:
                yield Finding(
                    "warning",
                    was.ref,
                    "the columns change, those of before are a listed revision: stored rows are upgraded on read, and "
                    "rows that are written from now on are INVALID to whoever has the catalogue of before",
                    "load the new catalogue into every reader first, then into what writes",
                )
            return
        found = self._stored.get(was.ref)
        rows = None if found is None else sum(found.fingerprints.get(revision.fingerprint, 0) for revision in lost)
        nowhere = rows == 0 and found is not None and found.complete
        said = (
            "" if rows is None else f" ({rows:,} are stored)" if found and found.complete else f" ({rows:,} were seen)"
        )
        yield Finding(
            "note" if nowhere else "breaking",
            was.ref,
            f"rows with the fingerprint {', '.join(f'{revision.fingerprint:08x}' for revision in lost)} are INVALID"
            f" then{said}: their columns are not a revision of the new view",
            "" if nowhere else self._revision_advice(layouts, now),
        )

    def _revision_advice(self, layouts: Sequence[Revision], now: View) -> str:
        troubles = []
        newest = {column.name: column.dtype for column in now.columns}
        for column in dict.fromkeys(column for revision in layouts for column in revision.columns):
            target = newest.get(column.name, column.dtype)
            if not column.dtype.widens_to(target):
                troubles.append(f"{column.name} cannot be widened from {column.dtype} to {target}")
        if troubles:
            return f"make it a new version, {self._next_version(now)}: {'; '.join(dict.fromkeys(troubles))}"
        listed = {revision.fingerprint: revision for revision in (*layouts, *now.revisions)}
        listed.pop(now.fingerprint, None)
        lines = [f"      - {said_columns(revision.columns)}" for revision in listed.values()]
        return "\n".join([f"under {now.ref} set", "    revisions:", *lines])

    def _next_version(self, view: View) -> str:
        taken = {other.version for other in self._new.views.values() if other.name == view.name}
        return f"{view.name}@{max(taken) + 1}"

    def _columns(self, was: View, now: View) -> Iterator[Finding]:
        after = {column.name: column for column in now.columns}
        before = {column.name: column for column in was.columns}
        for name, column in before.items():
            newer = after.get(name)
            if newer is None:
                models = self._using(was.ref, name)
                yield Finding(
                    "breaking" if models else "warning",
                    was.ref,
                    f"column {name} is removed" + (f", and models read it: {models}" if models else ""),
                    f"make it a new version, {self._next_version(now)}, and move the models there first"
                    if models
                    else "readers that ask for it by name get an error",
                )
                continue
            yield from self._column(was.ref, column, newer)
        for name in after.keys() - before.keys():
            if after[name].default is None:
                yield Finding(
                    "note", was.ref, f"column {name} is added without a default: null in every row stored before"
                )

    def _column(self, ref: str, was: Column, now: Column) -> Iterator[Finding]:
        models = self._using(ref, was.name)
        readers = f"; read by {models}" if models else ""
        if was.dtype != now.dtype:
            yield Finding("note", ref, f"column {was.name} is read as {now.dtype} instead of {was.dtype}{readers}")
        if repr(was.default) != repr(now.default):
            yield Finding(
                "warning",
                ref,
                f"the default of {was.name} changes from {_or_none(was)} to {_or_none(now)}: nulls and absent rows "
                f"read differently than before{readers}",
                "train the models with the new default, or make it a new version" if models else "",
            )

    def _rules(self, was: View, now: View) -> Iterator[Finding]:
        if was.absent_outcome != now.absent_outcome:
            yield Finding(
                "warning",
                was.ref,
                f"absent rows are {status.describe(now.absent_outcome)}, not {status.describe(was.absent_outcome)}",
            )
        if now.on_missing == "reject" != was.on_missing:
            yield Finding("warning", was.ref, "absent rows are rejected from now on", "load them before, or count them")
        if now.max_age_ms is not None and (was.max_age_ms is None or now.max_age_ms < was.max_age_ms):
            yield Finding(
                "warning", was.ref, f"rows are STALE from an age of {said_ms(now.max_age_ms)} on, not {_age(was)}"
            )
        if was.ttl_ms != now.ttl_ms:
            yield Finding(
                "note",
                was.ref,
                f"the ttl is {said_ms(now.ttl_ms)} instead of {said_ms(was.ttl_ms)}, for rows written from now on",
            )
        if was.compute != now.compute:
            yield Finding(
                "note", was.ref, "rows are computed differently; computed rows that are stored stay as they are"
            )

    def _using(self, ref: str, column: str) -> str:
        return ", ".join(model for model, columns in self._pins.get(ref, {}).items() if column in columns)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _or_none(column: Column) -> str:
    return "none" if column.default is None else repr(column.default)


def _age(view: View) -> str:
    return "never" if view.max_age_ms is None else said_ms(view.max_age_ms)

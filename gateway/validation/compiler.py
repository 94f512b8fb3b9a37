"""The section `validation` of a manifest and the profile -> `Checks`. Every problem is found and reported at once.

What is learned is learned here, once, from the profile: without one, or with one that does not fit, a model that asks
for learned thresholds does not load.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from featureclient.schema import DType, status
from gateway.plan.column import Context, Derived, PlanColumn, Stored
from gateway.plan.compiler import Location, PlanError
from gateway.plan.manifest import CheckUse, LearnedUse, MahalanobisUse, Policy, RangeUse, ValidationUse, ViewCheckUse
from gateway.plan.matrix import Matrix
from gateway.plan.plan import Assembled, FeaturePlan, Values
from gateway.records.request import Array
from gateway.records.signature import Signature
from gateway.validation import probe
from gateway.validation.checks import VERDICT, Checks, DistanceCheck, ViewCheck
from gateway.validation.column_check import ColumnCheck, NullBit
from gateway.validation.probe import Probe, Source, Test
from gateway.validation.profile import ColumnProfile, Profile, ProfileError

_OUTCOMES = {
    name: getattr(status, name) for name in ("PRESENT", "STALE", "COMPUTED", "DEFAULTED", "MISSING", "OVERRIDDEN")
}
_CONDITION_MAX = 1e12
"""Of a correlation matrix: beyond it, columns follow from each other and a distance means nothing."""


def compile_checks(
    plan: FeaturePlan, use: ValidationUse | None, profile: Profile | None, signature: Signature
) -> Checks | None:
    """The checks of a plan; None where the manifest has none. Raises `PlanError`."""
    if use is None:
        return None
    return _Compiler(plan, use, profile, signature).checks()


def learns(use: ValidationUse | None) -> bool:
    """Whether any check of a manifest needs the profile."""
    if use is None:
        return False
    checks = [*use.columns.values(), *([use.every] if use.every is not None else [])]
    ranges = [bounds for check in checks for bounds in (check.range, check.norm) if bounds is not None]
    learned = any(bounds.learned is not None for bounds in ranges)
    return learned or bool(use.mahalanobis) or any(check.categories == "learned" for check in checks)


def reference(path: Path, plan: FeaturePlan, version: int, use: ValidationUse | None) -> tuple[Profile | None, str]:
    """The profile at `path` where it is there and fits, else why it is not used; empty where there is just none.

    Raises `PlanError` instead where a check is learned: it has nothing to go by.
    """
    why = ""
    profile = None
    if path.is_file():
        try:
            profile = Profile.load(path)
        except ProfileError as error:
            why = str(error)
        else:
            views = {binding.ref: binding.view.fingerprint for binding in plan.bindings}
            dtypes = {name: str(plan.columns[name].dtype) for name in columns_read(plan)}
            wrong = profile.mismatches(plan.model, version, views, dtypes)
            why = f"{path} does not fit: {'; '.join(wrong)}; write it again with `headrace profile`" if wrong else ""
    if not why:
        return profile, ""
    if learns(use):
        raise PlanError([(("validation",), f"checks are learned from the profile, and {why}")])
    return None, why


def columns_read(plan: FeaturePlan) -> list[str]:
    """The columns that the model reads: those of its inputs, and those that their transforms are given."""
    reads: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in reads:
            return
        reads[name] = None
        source = plan.columns[name].source
        if isinstance(source, Derived):
            for parameter in plan.transforms[source.transform].parameters.values():
                visit(parameter)

    for matrix in plan.matrices:
        for column, _ in matrix.columns:
            visit(column.name)
    return list(reads)


class _Place(NamedTuple):
    """Elements of an array that is there anyway, in which the range of a column is looked at."""

    key: tuple[object, ...]
    source: Source
    width: int
    dtype: np.dtype[Any]
    start: int


class _Compiler:
    def __init__(self, plan: FeaturePlan, use: ValidationUse, profile: Profile | None, signature: Signature) -> None:
        self.plan = plan
        self.use = use
        self.profile = profile
        self.signature = signature
        self.problems: list[tuple[Location, str]] = []
        self.names: list[str] = []
        self.policies: set[str] = set()

    def checks(self) -> Checks | None:
        columns = self._columns()
        views = self._views()
        distances = self._distances()
        if self.use.rows is not None:
            self.policies.add(self.use.rows.policy)
        constants = self._constants()
        if self.problems:
            raise PlanError(self.problems)
        if not self.names:
            return None
        fallback = self.use.fallback
        return Checks(
            self.plan,
            tuple(self.names),
            columns,
            views,
            distances,
            (*_probes(self.plan, columns), *_view_probes(views), *self._distance_probes(distances)),
            violations_max=None if self.use.rows is None else self.use.rows.violations_max,
            rows_verdict=0 if self.use.rows is None else VERDICT[self.use.rows.policy],
            reject_rows=self.use.reject == "row",
            constants=constants,
            fallback_model=None if fallback is None else fallback.model,
        )

    def wrong(self, where: Location, message: str) -> None:
        self.problems.append((("validation", *where), message))

    def _name(self, name: str, policy: str) -> int:
        self.names.append(name)
        self.policies.add(policy)
        return len(self.names) - 1

    def _columns(self) -> tuple[ColumnCheck, ...]:
        asked: dict[str, tuple[Location, CheckUse, bool]] = {}
        if self.use.every is not None:
            asked = dict.fromkeys(columns_read(self.plan), (("every",), self.use.every, True))
        for name, use in self.use.columns.items():
            if name not in self.plan.columns:
                known = ", ".join(self.plan.columns) or "none"
                self.wrong(("columns", name), f"no column {name!r} (there are: {known})")
            else:
                asked[name] = (("columns", name), use, False)
        made = []
        # The order of the plan: a derived column after everything that it is made of.
        for name, column in self.plan.columns.items():
            if name in asked:
                where, use, lenient = asked[name]
                check = _ColumnCompiler(self, where, column, lenient=lenient).check(use)
                if check is not None:
                    made.append(replace(check, index=self._name(name, check.policy)))
        return tuple(made)

    def _views(self) -> tuple[ViewCheck, ...]:
        bindings = {binding.alias: index for index, binding in enumerate(self.plan.bindings)}
        made = []
        for alias, use in self.use.views.items():
            if alias not in bindings:
                self.wrong(("views", alias), f"no view {alias!r} (there are: {', '.join(bindings) or 'none'})")
            elif use.age_max is None and use.statuses is None:
                self.wrong(("views", alias), "needs age_max or statuses")
            else:
                made.append(self._view(bindings[alias], alias, use))
        return tuple(made)

    def _view(self, binding: int, alias: str, use: ViewCheckUse) -> ViewCheck:
        policy = use.policy or self._row_policy(("views", alias))
        welcome = use.statuses if use.statuses is not None else list(_OUTCOMES)
        unwelcome = [code for name, code in _OUTCOMES.items() if name not in welcome]
        return ViewCheck(
            binding,
            None if use.age_max is None else self._name(f"age({alias})", policy),
            0 if use.age_max is None else round(use.age_max * 1000),
            None if use.statuses is None else self._name(f"status({alias})", policy),
            probe.by_status(unwelcome),
            VERDICT[policy],
        )

    def _row_policy(self, where: Location) -> Policy:
        if self.use.policy in {"clip", "default"}:
            self.wrong(where, f"a row cannot follow the policy {self.use.policy!r} of `validation`; name one here")
            return "flag"
        return self.use.policy

    def _distances(self) -> tuple[DistanceCheck, ...]:
        found = (self._distance(name, use) for name, use in self.use.mahalanobis.items())
        return tuple(check for check in found if check is not None)

    def _distance(self, name: str, use: MahalanobisUse) -> DistanceCheck | None:
        where: Location = ("mahalanobis", name)
        policy = use.policy or self._row_policy(where)
        for column in use.columns:
            dtype = self.plan.columns[column].dtype if column in self.plan.columns else None
            if dtype is None or dtype.kind == "string" or dtype.length is not None:
                self.wrong((*where, "columns"), f"{column!r} is no column of numbers of this model")
                return None
        group = None if self.profile is None else self.profile.groups.get(name)
        if group is None or group.columns != tuple(use.columns):
            self.wrong(where, "the profile has no such group of columns: write it again with `headrace profile`")
            return None
        covariance = np.array(group.covariance)
        deviation = np.sqrt(np.diag(covariance))
        if group.count <= len(use.columns) or not deviation.all():
            constant = ", ".join(one for one, std in zip(use.columns, deviation, strict=True) if not std) or "all"
            self.wrong(where, f"these columns do not vary in the profile: {constant}")
            return None
        values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
        if values[0] * _CONDITION_MAX < values[-1]:
            self.wrong(where, "some of the columns follow from the others in the profile; leave those out")
            return None
        whiten = (vectors / np.sqrt(values)) / deviation[:, None]
        limit = use.distance_max or _chi_quantile(1 - (use.beyond or 0.0), len(use.columns))
        index = self._name(f"mahalanobis({name})", policy)
        return DistanceCheck(name, index, tuple(use.columns), np.array(group.mean), whiten, limit, VERDICT[policy])

    def _distance_probes(self, distances: Iterable[DistanceCheck]) -> Iterable[Probe]:
        return [_far(self.plan, check) for check in distances]

    def _constants(self) -> tuple[Any, ...] | None:
        fallback = self.use.fallback
        if fallback is None:
            if "fallback" in self.policies:
                self.wrong((), "a policy is `fallback`, and there is no `fallback` that says to what")
            return None
        if "fallback" not in self.policies:
            self.wrong(("fallback",), "no policy is `fallback`, so nothing ever falls back")
        if fallback.constant is None:
            return None
        names = {spec.name: spec for spec in self.signature.outputs}
        for name in fallback.constant.keys() - names.keys():
            self.wrong(("fallback", "constant", name), f"no output {name!r} (there are: {', '.join(names)})")
        constants = []
        for name, spec in names.items():
            if name not in fallback.constant:
                self.wrong(("fallback", "constant"), f"the output {spec} has no constant")
                continue
            value = fallback.constant[name]
            if isinstance(value, str) != (spec.dtype == "string"):
                self.wrong(("fallback", "constant", name), f"{value!r} is no value of {spec}")
                continue
            constants.append(value)
        return tuple(constants)


@dataclass(frozen=True, slots=True)
class _ColumnCompiler:
    """The check of one column. `lenient`: of `every`, which asks only what a column's dtype allows."""

    owner: _Compiler
    where: Location
    column: PlanColumn
    lenient: bool

    def check(self, use: CheckUse) -> ColumnCheck | None:
        column, dtype = self.column, self.column.dtype
        policy = use.policy or self.owner.use.policy
        numbers = dtype.kind not in {"string", "bool"}
        low, high = self._bounds("range", use.range, numbers, dtype.length is None)
        norm_low, norm_high = self._bounds("norm", use.norm, numbers and dtype.length is not None)
        categories = self._categories(use)
        null = self._null_bit(use)
        ranged = use.range is not None or use.norm is not None
        check = ColumnCheck(
            column,
            -1,
            policy,
            self._element(low, math.ceil),
            self._element(high, math.floor),
            norm_low,
            norm_high,
            categories,
            null,
            refuse_nan=use.nan == "refuse" and dtype.is_float,
            refuse_infinite=use.infinite == "refuse" and dtype.is_float,
            known=None if categories is None or dtype.kind == "string" else np.array([*categories], dtype.numpy),
        )
        if check.low is not None and check.high is not None and check.low > check.high:
            self._wrong("range", f"no {dtype} is between {low:g} and {high:g}")
        if not _checks_anything(check):
            if not self.lenient:
                self._wrong("", f"nothing is checked of a column of {dtype}; name a range, categories, nulls or nan")
            return None
        if policy == "clip" and not ranged:
            self._wrong("policy", "clip needs a range or a norm")
        return self._with_default(check, use)

    def _wrong(self, part: str, message: str) -> None:
        self.owner.wrong((*self.where, part) if part else self.where, f"{self.column.name}: {message}")

    def _with_default(self, check: ColumnCheck, use: CheckUse) -> ColumnCheck:
        """`default` needs a value, and `clip` where there is no nearest one; a stored column has one."""
        needed = check.policy == "default" or (check.policy == "clip" and _cannot_all_be_clipped(check))
        dtype, source = self.column.dtype, self.column.source
        if use.default is not None:
            try:
                value = dtype.value_of(use.default)
            except ValueError as error:
                self._wrong("default", str(error))
                return check
        elif isinstance(source, Stored):
            columns = self.owner.plan.bindings[source.binding].view.columns
            value = next(one.substitute for one in columns if one.name == self.column.name.partition(".")[2])
        elif needed:
            self._wrong("default", f"is required: {check.policy} has nothing to put for some violations of this column")
            return check
        else:
            return check
        made = np.array(value, object if dtype.kind == "string" else dtype.numpy)
        if needed and check.refuse_nan and np.isnan(made).any():
            self._wrong("default", "the default is NaN, which the same check refuses; name another")
        return replace(check, default=made if dtype.length is not None else made[()])

    def _bounds(
        self, part: str, use: RangeUse | None, possible: bool, learnable: bool = True
    ) -> tuple[float | None, float | None]:
        if use is None or not possible:
            if use is not None and not self.lenient:
                self._wrong(part, f"a column of {self.column.dtype} has no {part}")
            return None, None
        low, high = use.min, use.max
        if use.learned is not None and not learnable:
            if not self.lenient:
                self._wrong(part, "the range of a vector's elements is not in the profile; learn its norm instead")
        elif use.learned is not None:
            least, most = self._learned(part, use.learned)
            low, high = least if low is None else low, most if high is None else high
        return low, high

    def _learned(self, part: str, use: LearnedUse) -> tuple[float | None, float | None]:
        known = self._profile()
        if known is None:
            return None, None
        least, most = known.quantile(use.quantile), known.quantile(1 - use.quantile)
        if least is None or most is None:
            self._wrong(part, "the profile has no finite value of it, so nothing can be learned")
            return None, None
        margin = use.margin * (most - least)
        return least - margin, most + margin

    def _profile(self) -> ColumnProfile | None:
        profile = self.owner.profile
        known = None if profile is None else profile.columns.get(self.column.name)
        if profile is None:
            self._wrong("", "a learned check needs a profile beside the graph: write one with `headrace profile`")
        elif known is None:
            self._wrong("", "the profile has no such column: write it again with `headrace profile`")
        return known

    def _categories(self, use: CheckUse) -> frozenset[Any] | None:
        dtype = self.column.dtype
        if use.categories is None:
            return None
        if dtype.length is not None or dtype.kind == "timestamp":
            if not self.lenient:
                self._wrong("categories", f"a column of {dtype} has no categories")
            return None
        if use.categories != "learned":
            return self._listed(use.categories)
        known = self._profile()
        if known is None:
            return None
        if not known.complete:
            if not self.lenient:
                self._wrong("categories", "the profile has not all of its values: there are too many to learn")
            return None
        return self._listed([_value(dtype, name) for name in known.categories or ()])

    def _listed(self, given: Sequence[Any]) -> frozenset[Any]:
        dtype = self.column.dtype
        values = set()
        for one in given:
            try:
                value = dtype.value_of(one)
            except ValueError as error:
                self._wrong("categories", str(error))
                continue
            values.add(value if dtype.kind == "string" else dtype.numpy.type(value).item())
        return frozenset(values)

    def _null_bit(self, use: CheckUse) -> NullBit | None:
        source = self.column.source
        if use.nulls != "refuse":
            return None
        if not isinstance(source, Stored):
            if not self.lenient:
                self._wrong("nulls", "only columns of a view can be null")
            return None
        names = [column.name for column in self.owner.plan.bindings[source.binding].view.columns]
        byte, bit = divmod(names.index(self.column.name.partition(".")[2]), 8)
        return NullBit(byte, 1 << bit)

    def _element(self, bound: float | None, whole: Callable[[float], int]) -> Any:
        """A bound in the column's dtype; one beyond all of its values stays as far out as the dtype goes."""
        if bound is None:
            return None
        dtype = self.column.dtype
        if dtype.is_float:
            with np.errstate(over="ignore"):
                return dtype.numpy.type(bound)
        limits = np.iinfo(dtype.numpy)
        return dtype.numpy.type(min(max(whole(bound), int(limits.min)), int(limits.max)))


def _cannot_all_be_clipped(check: ColumnCheck) -> bool:
    """There are violations that no bound is nearest to."""
    normed = check.norm_low is not None or check.norm_high is not None
    open_ended = check.refuse_infinite and (check.low is None or check.high is None)
    return check.null is not None or check.refuse_nan or check.categories is not None or normed or open_ended


def _checks_anything(check: ColumnCheck) -> bool:
    bounds = (check.low, check.high, check.norm_low, check.norm_high, check.categories, check.null)
    return any(bound is not None for bound in bounds) or check.refuse_nan or check.refuse_infinite


def _value(dtype: DType, name: str) -> Any:
    """A category of a profile as a value."""
    if dtype.kind == "string":
        return name
    if dtype.kind == "bool":
        return name == "True"
    return float(name) if dtype.is_float else int(name)


def _chi_quantile(share: float, degrees: int) -> float:
    """The root of the chi-square quantile, by Wilson and Hilferty's formula: right to two percent from 2 degrees on."""
    z = NormalDist().inv_cdf(share)
    spread = 2 / (9 * degrees)
    return math.sqrt(degrees * max(1 - spread + z * math.sqrt(spread), 0.0) ** 3)


def _probes(plan: FeaturePlan, checks: Sequence[ColumnCheck]) -> list[Probe]:
    """The cheapest arrays in which violations of these columns can be seen."""
    ranges: dict[tuple[object, ...], _Range] = {}
    nulls: dict[int, dict[int, tuple[int, int]]] = {}
    others: list[Probe] = []
    for check in checks:
        if check.low is not None or check.high is not None or check.refuse_nan or check.refuse_infinite:
            place = _place(plan, check.column)
            ranges.setdefault(place.key, _Range(place)).bound(place, check)
        source = check.column.source
        if check.null is not None and isinstance(source, Stored):
            nulls.setdefault(source.binding, {})[check.index] = (check.null.byte, check.null.mask)
        if check.categories is not None:
            others.append(probe.one(check.index, _known(plan, check)))
        if check.norm_low is not None or check.norm_high is not None:
            norm = probe.norm_in_range(_cells(plan, check.column), check.norm_low, check.norm_high)
            others.append(probe.one(check.index, norm))
    absent = probe.substitutes()
    return [
        *[found.probe() for found in ranges.values()],
        *[
            probe.no_nulls(binding, len(plan.bindings[binding].view.columns), bits, absent)
            for binding, bits in nulls.items()
        ],
        *others,
    ]


class _Range:
    """The bounds of every element of an array's rows."""

    def __init__(self, place: _Place) -> None:
        self.source = place.source
        low, high = _ends(place.dtype)
        self.low: Array = np.full(place.width, low, place.dtype)
        self.high: Array = np.full(place.width, high, place.dtype)
        self.nan = np.zeros(place.width, np.bool_)
        self.owners = [-1] * place.width

    def bound(self, place: _Place, check: ColumnCheck) -> None:
        span = slice(place.start, place.start + check.column.dtype.width)
        low, high = check.low, check.high
        if check.refuse_infinite:
            limits = np.finfo(check.column.dtype.numpy)
            low = limits.min if low is None else max(low, limits.min)
            high = limits.max if high is None else min(high, limits.max)
        if low is not None:
            self.low[span] = low
        if high is not None:
            self.high[span] = high
        self.nan[span] = check.refuse_nan
        self.owners[span] = [check.index] * check.column.dtype.width

    def probe(self) -> Probe:
        return probe.in_range(self.source, self.low, self.high, self.nan, self.owners)


def _ends(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    if dtype.kind == "b":
        return False, True
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def _place(plan: FeaturePlan, column: PlanColumn) -> _Place:
    """Where a column's values can be compared exactly: in an input that holds them all, else where they come from."""
    for matrix in plan.matrices:
        for placed, span in matrix.columns:
            if placed is column and _holds_exactly(matrix.dtype, column.dtype.numpy):
                return _Place(("input", matrix.spec.name), _input(matrix), matrix.width, matrix.dtype, int(span.start))
    source = column.source
    if isinstance(source, Stored):
        view = plan.bindings[source.binding].view
        dtype, shape = view.layout.block_dtype[source.run].subdtype or (column.dtype.numpy, (column.dtype.width,))
        key = ("run", source.binding, source.run)
        return _Place(key, probe.of_run(source.binding, source.run), shape[0], dtype, source.start)
    width = column.dtype.width
    return _Place(("column", column.name), _cells(plan, column), width, column.dtype.numpy, 0)


def _holds_exactly(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    if wide.kind == "f" and narrow.kind == "i":
        return bool(np.iinfo(narrow).bits <= np.finfo(wide).nmant + 1)
    return np.can_cast(narrow, wide, "safe")


def _input(matrix: Matrix) -> Source:
    flat = matrix.row_shape == (matrix.width,)
    return probe.of_input(matrix.spec.name, None if flat else matrix.width)


def _cells(plan: FeaturePlan, column: PlanColumn) -> Source:
    """The column itself, as [rows] or [rows, length]."""
    source, dtype = column.source, column.dtype
    if isinstance(source, Context):
        return probe.of_context(source.index)
    if isinstance(source, Stored):
        return probe.of_cells(source.binding, source.run, source.start, dtype.length)

    def derived(assembled: Assembled) -> Array:
        # Only for what fills no input of the model: its transform runs twice.
        return _values(plan, assembled)(column)

    return derived


def _known(plan: FeaturePlan, check: ColumnCheck) -> Test:
    categories = check.categories or frozenset()
    dtype = check.column.dtype
    if dtype.kind == "string" and isinstance(check.column.source, Stored):
        categories = frozenset(text.encode() for text in categories)  # as the block has them
    return probe.known(_cells(plan, check.column), categories)


def _view_probes(views: Iterable[ViewCheck]) -> list[Probe]:
    probes: list[Probe] = []
    for view in views:
        if view.age_index is not None:
            probes.append(probe.one(view.age_index, probe.young(view.binding, view.age_max_ms)))
        if view.status_index is not None:
            probes.append(probe.one(view.status_index, probe.welcome(view.binding, view.refused)))
    return probes


def _far(plan: FeaturePlan, check: DistanceCheck) -> Probe:
    columns = [plan.columns[name] for name in check.columns]

    def far(assembled: Assembled) -> bool:
        values = _values(plan, assembled)
        return bool(check.far([values(column) for column in columns]).any())

    return probe.one(check.index, far)


def _values(plan: FeaturePlan, assembled: Assembled) -> Values:
    return Values(plan, assembled.blocks, assembled.context, len(next(iter(assembled.inputs.values()))))

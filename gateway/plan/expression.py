"""Derived columns: `distance / air_time`, written in a manifest, checked, and run by numexpr.

    text ─▶ ast.parse ─▶ every node against a short list ─▶ text of our own making ─▶ numexpr.NumExpr, once, at load

What a user writes never reaches numexpr, whose parser is Python's `eval`: it gets text that is printed from the checked
tree, in which columns are called `c0`, `c1`, … and functions are those of `FUNCTIONS`.

A value is a number (float64, whatever the column's dtype) or a truth. There are no integers inside an expression, so
nothing overflows or is divided as one; the result is rounded once, to the dtype of the derived column. Arithmetic is
that of IEEE 754: x / 0 is infinite, 0 / 0 and log(-1) are NaN, NaN goes through every operation, and a comparison with
it is false (`!=` is true). Both sides of a `where` are evaluated.

Every element is computed alone, one after the other and in one thread, so a row's value does not depend on its batch.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from featureclient.schema import DType
from gateway.records.request import Array

EXPRESSION_CHARACTERS_MAX = 2000
NODES_MAX = 256
"""How much a single expression may compute. numexpr has 256 registers for columns, constants and results together."""

Kind: TypeAlias = Literal["number", "truth"]

FUNCTIONS: Mapping[str, int] = {
    **dict.fromkeys(("abs", "sign", "sqrt", "floor", "ceil", "trunc", "round"), 1),
    **dict.fromkeys(("exp", "expm1", "log", "log10", "log1p", "log2"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"), 1),
    **dict.fromkeys(("isnan", "isfinite"), 1),
    **dict.fromkeys(("minimum", "maximum", "arctan2", "hypot"), 2),
    "where": 3,
}
"""The functions of an expression and how many arguments each takes."""

_ARITHMETIC: Mapping[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_LOGIC: Mapping[type[ast.AST], str] = {ast.And: "&", ast.BitAnd: "&", ast.Or: "|", ast.BitOr: "|"}
_TRUTHS = {"isnan", "isfinite"}
_GRAMMAR = "an expression has columns, numbers, + - * / // % **, comparisons, and, or, not, functions"


class ExpressionError(Exception):
    """An expression that is not one, or that does not fit the columns."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked and compiled expression. `names` are the columns that it reads, in the order of its arguments."""

    text: str
    names: tuple[str, ...]
    kind: Kind
    dtype: DType
    _run: Callable[..., Array]

    @classmethod
    def compile(cls, text: str, dtype: DType, columns: Mapping[str, DType]) -> "Expression":
        """Check `text` against the dtypes of the columns that there are. Raises ExpressionError with the position."""
        if dtype.kind == "string" or dtype.length is not None or dtype.kind == "timestamp":
            raise ExpressionError(f"an expression gives numbers and bools, not {dtype}")
        printed = _Printer(text, columns).print()
        if dtype.kind == "bool" and printed.kind != "truth":
            raise ExpressionError("gives a number, its dtype is bool; compare it with something")
        return cls(text, tuple(printed.names), printed.kind, dtype, _compiled(printed))

    def evaluate(self, arrays: Sequence[Array]) -> Array:
        """The value of each row, in `dtype` [rows], from one array [rows] for each of `names`."""
        result = self._run(*arrays)
        if self.dtype.is_integer:
            return _as_integers(result, self.dtype.numpy)
        with np.errstate(over="ignore"):  # beyond a narrower float is infinite
            return result.astype(self.dtype.numpy, copy=False)


def _as_integers(result: Array, target: np.dtype[Any]) -> Array:
    """Towards zero; NaN is 0, and what is beyond the dtype is its nearest bound."""
    bounds = np.iinfo(target)
    numbers = np.nan_to_num(np.trunc(result.astype(np.float64)), posinf=np.inf, neginf=-np.inf)
    above, below = numbers >= float(bounds.max), numbers <= float(bounds.min)
    made = np.where(above | below, 0.0, numbers).astype(target)
    made[above] = bounds.max
    made[below] = bounds.min
    return made


@dataclass(frozen=True, slots=True)
class _Printed:
    """The text for numexpr, and the columns `c0`, `c1`, … of it with their kinds."""

    text: str
    kind: Kind
    names: Mapping[str, Kind]


def _compiled(printed: _Printed) -> Callable[..., Array]:
    import numexpr  # a quarter of a second, and only manifests with expressions need it

    # Batches are small, and its threads would wait for one another on the loop's core.
    numexpr.set_num_threads(1)
    types: dict[Kind, type] = {"number": np.float64, "truth": bool}
    signature = [(f"c{i}", types[kind]) for i, kind in enumerate(printed.names.values())]
    try:
        run: Callable[..., Array] = numexpr.NumExpr(printed.text, signature=signature)
        run(*[np.ones(1, kind) for _, kind in signature])
    except Exception as error:  # it folds constants when it compiles, which may raise anything that arithmetic does
        raise ExpressionError(f"cannot be computed: {type(error).__name__}: {error}") from error
    return run


class _Printer:
    """Walks the tree of one expression, refuses what is not on the lists, and prints the rest for numexpr."""

    def __init__(self, text: str, columns: Mapping[str, DType]) -> None:
        # A manifest may fold a long expression into several lines.
        self._text = text.replace("\n", " ").strip()
        self._columns = columns
        self._names: dict[str, Kind] = {}
        self._nodes = 0

    def print(self) -> _Printed:
        if len(self._text) > EXPRESSION_CHARACTERS_MAX:
            raise ExpressionError(f"has {len(self._text)} characters, the limit is {EXPRESSION_CHARACTERS_MAX}")
        if "#" in self._text:
            raise ExpressionError("has a comment; put it behind a # of the file")
        try:
            tree = ast.parse(self._text, mode="eval")
        except SyntaxError as error:
            raise ExpressionError(f"is not an expression: {error.msg}{_at(error.offset)}") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"is not an expression: {error}") from error
        text, kind = self._visit(tree.body)
        if not self._names:
            raise ExpressionError("reads no column, so it is the same in every row")
        return _Printed(text, kind, self._names)

    def _refuse(self, node: ast.expr, why: str) -> NoReturn:
        said = ast.get_source_segment(self._text, node) or ""
        short = said if len(said) <= 40 else f"{said[:37]}..."  # noqa: PLR2004 - as much as a line of output has room for
        raise ExpressionError(f"{short!r}{_at(node.col_offset + 1)}: {why}")

    def _visit(self, node: ast.expr) -> tuple[str, Kind]:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ExpressionError(f"has more than {NODES_MAX} parts")
        visit = _VISITS.get(type(node))
        if visit is None:
            self._refuse(node, _GRAMMAR)
        return visit(self, node)

    def _number(self, node: ast.expr) -> str:
        text, kind = self._visit(node)
        return text if kind == "number" else f"where({text}, 1.0, 0.0)"

    def _truth(self, node: ast.expr) -> str:
        text, kind = self._visit(node)
        if kind != "truth":
            self._refuse(node, "is a number where a condition is needed; compare it with something")
        return text

    def _constant(self, node: ast.Constant) -> tuple[str, Kind]:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(node, "only numbers can be written here; a transform works on other things")
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if not np.isfinite(number):
            self._refuse(node, "is not a finite float64")
        return repr(number), "number"

    def _column(self, node: ast.Name | ast.Attribute) -> tuple[str, Kind]:
        name = _dotted(node)
        if name is None:
            self._refuse(node, "is not a column: alias.column, or the name of a context or derived column")
        dtype = self._columns.get(name)
        if dtype is None:
            if name in FUNCTIONS:
                self._refuse(node, f"is a function; call it with {FUNCTIONS[name]} arguments")
            existing = ", ".join(self._columns) or "none"
            self._refuse(node, f"no column {name!r} (there are: {existing})")
        if dtype.kind == "string" or dtype.length is not None:
            self._refuse(node, f"is {dtype}; an expression computes with single numbers and bools, use a transform")
        self._names.setdefault(name, "truth" if dtype.kind == "bool" else "number")
        return f"c{list(self._names).index(name)}", self._names[name]

    def _unary(self, node: ast.UnaryOp) -> tuple[str, Kind]:
        if isinstance(node.op, ast.Not | ast.Invert):
            return f"(~{self._truth(node.operand)})", "truth"
        return f"({'-' if isinstance(node.op, ast.USub) else '+'}{self._number(node.operand)})", "number"

    def _binary(self, node: ast.BinOp) -> tuple[str, Kind]:
        if type(node.op) in _LOGIC:
            return self._logic(node.op, [node.left, node.right])
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            self._refuse(node, _GRAMMAR)
        return f"({self._number(node.left)} {operator} {self._number(node.right)})", "number"

    def _bool(self, node: ast.BoolOp) -> tuple[str, Kind]:
        return self._logic(node.op, node.values)

    def _logic(self, operator: ast.AST, operands: Sequence[ast.expr]) -> tuple[str, Kind]:
        return f"({f' {_LOGIC[type(operator)]} '.join([self._truth(one) for one in operands])})", "truth"

    def _compare(self, node: ast.Compare) -> tuple[str, Kind]:
        """`a < b < c` is `a < b` and `b < c`."""
        for operator in node.ops:
            if type(operator) not in _COMPARISONS:
                self._refuse(node, "comparisons are < <= > >= == !=")
        sides = [self._number(side) for side in (node.left, *node.comparators)]
        pairs = [
            f"({left} {_COMPARISONS[type(operator)]} {right})"
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return (pairs[0] if len(pairs) == 1 else f"({' & '.join(pairs)})"), "truth"

    def _conditional(self, node: ast.IfExp) -> NoReturn:
        self._refuse(node, "write where(condition, this, that)")

    def _call(self, node: ast.Call) -> tuple[str, Kind]:
        name = _dotted(node.func)
        wanted = FUNCTIONS.get(name or "")
        if name is None or wanted is None:
            self._refuse(node, f"is not a function here (there are: {', '.join(sorted(FUNCTIONS))})")
        if node.keywords or len(node.args) != wanted or any(isinstance(one, ast.Starred) for one in node.args):
            self._refuse(node, f"{name} takes {wanted} argument{'s' if wanted > 1 else ''}")
        if name == "where":
            condition, this, that = node.args
            return f"where({self._truth(condition)}, {self._number(this)}, {self._number(that)})", "number"
        return (
            f"{name}({', '.join([self._number(one) for one in node.args])})",
            "truth" if name in _TRUTHS else "number",
        )


def _at(column: int | None) -> str:
    return f" at column {column}" if column else ""


_VISITS: Mapping[type[ast.expr], Callable[[_Printer, Any], tuple[str, Kind]]] = {
    ast.Constant: _Printer._constant,
    ast.Name: _Printer._column,
    ast.Attribute: _Printer._column,
    ast.UnaryOp: _Printer._unary,
    ast.BinOp: _Printer._binary,
    ast.BoolOp: _Printer._bool,
    ast.Compare: _Printer._compare,
    ast.Call: _Printer._call,
    ast.IfExp: _Printer._conditional,
}
"""Every kind of node that an expression may have."""


def _dotted(node: ast.expr) -> str | None:
    """`alias.column` or `column`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None


def expression_names(text: str) -> list[str]:
    """The columns that an expression names, whether or not there are such; none for what is not an expression."""
    try:
        tree = ast.parse(text.replace("\n", " ").strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [_dotted(node) for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in called]
    return [*dict.fromkeys(name for name in names if name is not None)]

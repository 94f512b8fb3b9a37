"""User code in the path of a prediction: found in allow-listed modules only, and tried out before it serves."""

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np

from featureclient.schema import DType
from featureclient.schema.reference import BadReference
from featureclient.schema.reference import resolve as function_of
from gateway.plan.column import array_dtype
from gateway.plan.expression import Expression
from gateway.records.request import Array

Function: TypeAlias = Callable[..., Mapping[str, Array]]
Resolve: TypeAlias = Callable[[str], Function]


class TransformError(Exception):
    """A transform that cannot be found or does not keep its promises."""


def resolver(allowed: Collection[str]) -> Resolve:
    """Return a function that resolves `module:function` inside the modules of the setting `transform_modules`."""

    def resolve(reference: str) -> Function:
        try:
            return function_of(reference, allowed, "transform_modules")
        except BadReference as error:
            raise TransformError(str(error)) from error

    return resolve


class Transform:
    """One transform of a plan, with the promises of its manifest."""

    __slots__ = ("function", "outputs", "parameters", "reference")

    def __init__(
        self, reference: str, function: Function, parameters: Mapping[str, str], outputs: Mapping[str, DType]
    ) -> None:
        self.reference = reference
        self.function = function
        self.parameters = parameters
        self.outputs = outputs

    def run(self, arguments: Mapping[str, Array], rows: int) -> Mapping[str, Array]:
        """Apply the function to arrays of `rows` rows; check the names, shapes and dtypes of what it returns."""
        results = self.function(**arguments)
        for name, dtype in self.outputs.items():
            try:
                array: object = results[name]
            except (KeyError, TypeError, IndexError):
                raise TransformError(f"{self.reference} does not return {name!r}") from None
            shape = (rows, dtype.width) if dtype.length else (rows,)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != array_dtype(dtype):
                found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise TransformError(
                    f"{self.reference} returns {name!r} as {found}, its manifest says {dtype} for {list(shape)}"
                )
        return results

    def try_out(self, sample: Mapping[str, Array]) -> None:
        """Run on `sample` whole and row by row: a transform whose rows depend on each other is refused.

        Otherwise a prediction would depend on which strangers it shares a batch with.
        """
        rows = len(next(iter(sample.values())))
        try:
            whole = self.run(sample, rows)
            for row in range(rows):
                alone = self.run({name: array[row : row + 1] for name, array in sample.items()}, 1)
                for name in self.outputs:
                    if not _same(whole[name][row : row + 1], alone[name]):
                        raise TransformError(f"{self.reference}: a row of {name!r} depends on the other rows")
        except TransformError:
            raise
        except Exception as error:
            raise TransformError(f"{self.reference} raises {type(error).__name__}: {error}") from error


def derivation(name: str, expression: Expression) -> Transform:
    """An expression as a transform whose one output is `name`."""

    def evaluate(**arrays: Array) -> Mapping[str, Array]:
        return {name: expression.evaluate([*arrays.values()])}

    # Keyword arguments keep their order, which is that of the expression's names.
    parameters = {f"c{i}": column for i, column in enumerate(expression.names)}
    return Transform(f"derive.{name}", evaluate, parameters, {name: expression.dtype})


def _same(first: Array, second: Array) -> bool:
    if first.dtype.kind == "f":
        return bool(np.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True))
    return bool(np.array_equal(first, second))

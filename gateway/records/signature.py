"""What a model graph says about its inputs and outputs."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    `dtype` is a numpy name (`float32`, `int64`, `bool`) or `string`. `shape` holds a number where the graph fixes the
    dimension and None where it does not; the first dimension is the batch. `names` are those that the graph gives to
    free dimensions, empty elsewhere: what has one name is one number. They take no part in comparisons.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    names: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a graph, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

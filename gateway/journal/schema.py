"""What the journal keeps of one model: made once when a model is loaded, written into every file as its metadata.

    plan + signature -> JournalSchema -> (redaction) -> the Arrow schema of segments and Parquet files

Invariants
- Equal schemas have equal hashes, and a folder of segments holds one schema only.
- A column that feeds the model's inputs or a transform is kept in the dtype in which it was there: stored and context
  columns as they came, the outputs of transforms as the input matrix has them. What a transform makes only for another
  transform follows from the rest, and is not kept.
- Nothing here knows a value. `Redaction` says which columns may be written, and how.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import pyarrow as pa

from featureclient.schema import DType
from gateway.journal.policy import Policy, Redaction
from gateway.plan import FeaturePlan
from gateway.plan.column import Context, Derived, PlanColumn, Stored
from gateway.records.signature import Signature, TensorSpec

METADATA = b"headrace"
"""The key of the schema's metadata in every file."""
FORMAT = 1
"""The version of what is in the metadata and of the names of the columns."""

Kind: TypeAlias = Literal["stored", "context", "derived"]

_WIDER = {"uint8": "int16", "uint16": "int32", "uint32": "int64", "uint64": "float64"}
_ARROW = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}
_ARROW |= {f"{kind}{bits}": getattr(pa, f"{kind}{bits}")() for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
CHANGED = pa.list_(pa.struct([("column", pa.int16()), ("raw", pa.float64()), ("text", pa.string())]))
SHAPE = pa.list_(pa.int32())
"""Of a row, where a tensor's rows have no fixed size; of the whole tensor where it has no rows."""
PREDICTION_ID = pa.binary(16)
TIME = pa.timestamp("ms", tz="UTC")
STAGES = ("wait_us", "assemble_us", "run_us", "reply_us")


class Where(NamedTuple):
    """Where the values of a column are in an `Assembled`: the part, and the place in it.

    stored: block `part`, `[run][:, start : start + width]`, and the column's `bit` in the validity bits
    context: array `part`
    derived: the matrix of the input `run`, from `start` on; a width of 0 means all that a row has
    """

    part: int = -1
    run: str = ""
    start: int = 0
    width: int = 1
    bit: int = -1


@dataclass(frozen=True, slots=True)
class JournalColumn:
    """One feature column. `dtype` is what kind of values it has, `element` the numpy dtype in which they are written:
    they differ where an input of the graph is of unsigned integers, which no feature can be."""

    name: str
    dtype: DType
    kind: Kind
    where: Where
    element: str
    """A numpy name, or `string`."""


class JournalBinding(NamedTuple):
    """A view of the model: its alias, `name@version`, fingerprint, and the request columns of its join keys."""

    alias: str
    ref: str
    fingerprint: int
    keys: tuple[str, ...] = ()
    columns: int = 0
    """How many columns the view has: the bits of `null.<alias>`."""


@dataclass(frozen=True, slots=True, eq=False)
class JournalSchema:
    """What is kept of one version of a model. Made by `schema_of`."""

    model: str
    version: int
    variant: str
    manifest_hash: str
    columns: tuple[JournalColumn, ...]
    entities: Mapping[str, str]
    """Request column -> `string` or `int64`."""
    bindings: tuple[JournalBinding, ...]
    outputs: tuple[TensorSpec, ...]
    checked: tuple[str, ...]
    """What the bits of `violated` stand for, from the lowest bit of the first byte on."""
    row_bytes: int | None = None
    """About what a row holds in memory until it is written; None where rows have no fixed size."""
    batched: bool = True
    graph_hash: str = ""
    """SHA-256 of the graph's file; empty where it was not told."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Module of a transform -> SHA-256 of its source."""
    texts: bool = field(init=False)
    """Some arrays of a run hold texts, whose sizes the arrays do not tell."""
    hash: str = field(init=False)

    @property
    def of_tensors(self) -> bool:
        """Whether the callers sent the graph's own inputs: then nothing was stored, and nothing is context."""
        return all(column.kind == "derived" for column in self.columns)

    def __post_init__(self) -> None:
        elements = [*(column.element for column in self.columns), *(spec.dtype for spec in self.outputs)]
        object.__setattr__(self, "texts", "string" in elements)
        digest = hashlib.blake2b(json.dumps(self.described(), sort_keys=True).encode(), digest_size=4)
        object.__setattr__(self, "hash", digest.hexdigest())

    def described(self) -> dict[str, Any]:
        """As JSON has it: the content of a file's metadata."""
        return {
            "format": FORMAT,
            "model": self.model,
            "version": self.version,
            "variant": self.variant,
            "manifest_hash": self.manifest_hash,
            "columns": [
                {
                    "name": column.name,
                    "dtype": str(column.dtype),
                    "element": column.element,
                    "kind": column.kind,
                    "alias": self.bindings[column.where.part].alias if column.kind == "stored" else None,
                    "where": list(column.where),
                }
                for column in self.columns
            ],
            "entities": dict(self.entities),
            "bindings": [binding._asdict() for binding in self.bindings],
            "outputs": [asdict(spec) for spec in self.outputs],
            "checked": list(self.checked),
            "batched": self.batched,
            "graph_hash": self.graph_hash,
            "sources": dict(self.sources),
        }

    @classmethod
    def of_metadata(cls, described: Mapping[str, Any]) -> "JournalSchema":
        """The schema that a file was written with. Raises KeyError, TypeError or ValueError where it is none."""
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']}, this version reads format {FORMAT}")
        columns = [
            JournalColumn(one["name"], DType.parse(one["dtype"]), one["kind"], Where(*one["where"]), one["element"])
            for one in described["columns"]
        ]
        bindings = [JournalBinding(**{**one, "keys": tuple(one["keys"])}) for one in described["bindings"]]
        outputs = [TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in described["outputs"]]
        return cls(
            described["model"],
            described["version"],
            described["variant"],
            described["manifest_hash"],
            tuple(columns),
            described["entities"],
            tuple(bindings),
            tuple(outputs),
            tuple(described["checked"]),
            batched=described["batched"],
            graph_hash=described.get("graph_hash", ""),
            sources=described.get("sources", {}),
        )


_TEXT = DType("string", bytes_max=65_536)
"""What stands for strings of any length: those of context tensors that a caller sends for a graph's own input."""


def schema_of(
    model: str,
    version: int,
    plan: Any,
    signature: Signature,
    *,
    variant: str = "default",
    manifest_hash: str = "",
    checked: Sequence[str] = (),
    graph_hash: str = "",
    sources: Mapping[str, str] | None = None,
) -> JournalSchema:
    """What the journal keeps of a model. `plan` is a `FeaturePlan`, or a plan whose callers send the graph's inputs.

    `checked` are the names that violations may have, where they are not just those of the columns. `graph_hash` and
    `sources` (`gateway.inference.pinned.sources_of`) let who replays the journal know that it has the same model.
    """
    batched: bool = getattr(plan, "batched", True)
    if isinstance(plan, FeaturePlan):
        columns = tuple(_columns(plan))
    else:
        columns = tuple(_input(spec, batched) for spec in signature.inputs)
    bindings = tuple(
        JournalBinding(binding.alias, binding.ref, binding.view.fingerprint, binding.keys, len(binding.view.columns))
        for binding in plan.bindings
    )
    return JournalSchema(
        model,
        version,
        variant,
        manifest_hash,
        columns,
        dict(plan.entities),
        bindings,
        signature.outputs,
        tuple(checked) or tuple(column.name for column in columns),
        _row_bytes(plan, signature) if isinstance(plan, FeaturePlan) else None,
        batched,
        graph_hash,
        sources or {},
    )


def _columns(plan: FeaturePlan) -> Iterator[JournalColumn]:
    """The columns that are read by a transform or a matrix, in the plan's order."""
    read = {name for transform in plan.transforms for name in transform.parameters.values()}
    filled: dict[str, tuple[str, int, str]] = {}
    for matrix in plan.matrices:
        for column, span in matrix.columns:
            read.add(column.name)
            filled.setdefault(column.name, (matrix.spec.name, span.start, matrix.spec.dtype))
    for name, column in plan.columns.items():
        if name in read and (not isinstance(column.source, Derived) or name in filled):
            yield _column(plan, column, filled)


def _column(plan: FeaturePlan, column: PlanColumn, filled: Mapping[str, tuple[str, int, str]]) -> JournalColumn:
    source, width = column.source, column.dtype.width
    element = "string" if column.dtype.kind == "string" else column.dtype.numpy.name
    if isinstance(source, Stored):
        alias = plan.bindings[source.binding].alias
        names = [one.name for one in plan.bindings[source.binding].view.columns]
        bit = names.index(column.name.removeprefix(f"{alias}."))
        where = Where(source.binding, source.run, source.start, width, bit)
        return JournalColumn(column.name, column.dtype, "stored", where, element)
    if isinstance(source, Context):
        return JournalColumn(column.name, column.dtype, "context", Where(source.index, width=width), element)
    name, start, element = filled[column.name]
    kind = column.dtype if element == "string" else _dtype(element, column.dtype.length)
    return JournalColumn(column.name, kind, "derived", Where(run=name, start=start, width=width), element)


def _dtype(element: str, length: int | None) -> DType:
    return DType(_WIDER.get(element, element), length=length)


def _input(spec: TensorSpec, batched: bool) -> JournalColumn:
    """A graph's own input as a column."""
    width = row_width(spec, batched)
    kind = _TEXT if spec.dtype == "string" else _dtype(spec.dtype, width if width not in (0, 1) else None)
    return JournalColumn(spec.name, kind, "derived", Where(run=spec.name, width=width), spec.dtype)


def row_width(spec: TensorSpec, batched: bool = True) -> int:
    """How many elements of a tensor a row has; 0 where the graph leaves it open, and where it has no rows: then the
    tensor is written whole, and its shape beside it."""
    if not spec.shape or not batched:
        return 0
    width = 1
    for size in spec.shape[1:]:
        width *= size or 0
    return width


def _row_bytes(plan: FeaturePlan, signature: Signature) -> int:
    """About what a row holds: its blocks, its context, its inputs and its outputs."""
    blocks = sum(binding.view.layout.block_dtype.itemsize for binding in plan.bindings)
    # The request has its context too.
    context = sum(64 if column.dtype.kind == "string" else 2 * column.dtype.bytes for column in plan.context)
    inputs = sum(matrix.width * matrix.dtype.itemsize for matrix in plan.matrices)
    outputs = sum(max(row_width(spec), 1) * 8 for spec in signature.outputs)
    return blocks + context + inputs + outputs


def arrow_schema(schema: JournalSchema, redaction: Redaction) -> pa.Schema:
    """The columns of the model's files, with the schema as metadata. What is dropped is not there."""
    fields: list[tuple[str, pa.DataType | None]] = [
        ("prediction_id", PREDICTION_ID),
        ("request_id", pa.string()),
        ("row", pa.int32()),
        ("rows", pa.int32()),
        ("time", TIME),
    ]
    for name, dtype in schema.entities.items():
        fields.append(
            (f"entity.{name}", redacted_type(pa.int64() if dtype == "int64" else pa.string(), redaction.of(name)))
        )
    for column in schema.columns:
        kind = redacted_type(column_type(column), redaction.of(column.name))
        fields.append((f"f.{column.name}", kind))
        if column.where.width == 0 and kind is not None:
            fields.append((f"shape.f.{column.name}", SHAPE))
    for binding in schema.bindings:
        fields.append((f"null.{binding.alias}", pa.binary(max((binding.columns + 7) // 8, 1))))
        fields.append((f"status.{binding.alias}", pa.uint8()))
        fields.append((f"age_ms.{binding.alias}", pa.int64()))
    fields += [
        ("verdict", pa.uint8()),
        ("violations", pa.uint32()),
        ("violated", pa.binary()),
        ("changed", CHANGED),
    ]
    for spec in schema.outputs:
        width = row_width(spec, schema.batched)
        fields.append((f"out.{spec.name}", tensor_type(spec.dtype, width)))
        if width == 0:
            fields.append((f"shape.out.{spec.name}", SHAPE))
    fields += [(stage, pa.float32()) for stage in STAGES]
    described = schema.described() | {"redacted": dict(redaction.policies)}
    return pa.schema([one for one in fields if one[1] is not None], {METADATA: json.dumps(described).encode()})


def column_type(column: JournalColumn) -> pa.DataType:
    """The Arrow type of a feature column."""
    return tensor_type(column.element, column.where.width, vector=column.dtype.length is not None)


def tensor_type(element: str, width: int, *, vector: bool = False) -> pa.DataType:
    """The Arrow type of `width` elements: the element itself for 1, a list of any length for 0."""
    value = pa.string() if element == "string" else _ARROW[element]
    if width == 0:
        return pa.list_(value)
    return value if width == 1 and not vector else pa.list_(value, width)


def redacted_type(kind: pa.DataType, policy: Policy | None) -> pa.DataType | None:
    """What a column becomes; None where it is left out. A vector has no mask, it is left out too."""
    if policy == "drop" or (policy == "mask" and pa.types.is_nested(kind)):
        return None
    return pa.string() if policy == "hash" else kind


def metadata_of(schema: pa.Schema) -> JournalSchema:
    """The schema in a file's metadata. Raises ValueError, saying what is wrong with it."""
    try:
        return JournalSchema.of_metadata(json.loads((schema.metadata or {})[METADATA]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"it has no metadata of a journal of this version: {type(error).__name__}: {error}") from error


FAILURES = pa.schema(
    [
        ("time", TIME),
        ("request_id", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("variant", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("entities", pa.string()),
    ],
    {METADATA: json.dumps({"format": FORMAT, "failures": True}).encode()},
)
"""The stream of failures: `entities` is JSON, the first ids of each request column. `version` and `variant` are null
where the request had not got so far, and in files of before they were there."""

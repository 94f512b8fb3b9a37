"""Triton's `config.pbtxt`: read by its schema, checked against the graph, and what of it is acted on.

Three kinds of fields. What is acted on: name, platform, backend, version_policy, max_batch_size, input, output,
instance_group.count, model_warmup. What would change answers if it were left out is refused. Every other field that is
set is named in a warning: nothing is ignored in silence. A field that the schema has not is an error with its line.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message

from featureclient.schema import ConfigError, Problem
from gateway.inference.layout import GRAPH
from gateway.plan.manifest import LatestUse, Versions
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec
from headrace.inference import model_config_pb2 as pb

DTYPES = {
    pb.TYPE_BOOL: "bool",
    pb.TYPE_UINT8: "uint8",
    pb.TYPE_UINT16: "uint16",
    pb.TYPE_UINT32: "uint32",
    pb.TYPE_UINT64: "uint64",
    pb.TYPE_INT8: "int8",
    pb.TYPE_INT16: "int16",
    pb.TYPE_INT32: "int32",
    pb.TYPE_INT64: "int64",
    pb.TYPE_FP16: "float16",
    pb.TYPE_FP32: "float32",
    pb.TYPE_FP64: "float64",
    pb.TYPE_STRING: "string",
}
INSTANCES_MAX = 64
WARMUP_RUNS_MAX = 1_000
"""Of one model_warmup entry."""
WARMUPS_MAX = 100
WARMUP_BYTES_MAX = 128 << 20
"""Of the arrays of one model_warmup entry."""
CONFIG_BYTES_MAX = 1 << 20

_PLATFORMS = {"", "onnxruntime_onnx"}
_BACKENDS = {"", "onnxruntime"}
_ACTED_ON = {
    "ModelConfig": {
        *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "instance_group"),
        *("model_warmup", "default_model_filename"),
    },
    "ModelInput": {"name", "data_type", "dims"},
    "ModelOutput": {"name", "data_type", "dims"},
    "ModelInstanceGroup": {"name", "count"},
}
_REFUSED = {
    "sequence_batching": "keeps state between requests, which Headrace does not",
    "ensemble_scheduling": "is a model of models; serve its steps as models of their own",
    "model_operations": "loads libraries of operators, which Headrace does not",
    "reshape": "gives the graph another shape than callers send; export the graph with the shape that callers send",
    "allow_ragged_batch": "joins requests of different shapes, which Headrace does not",
}
_ADVICE = {
    "dynamic_batching": "requests are always batched, without a delay; priorities and bounds are set under `execution`",
    "optimization": "set `hardware` in a model.yaml",
    "parameters": "set `hardware` in a model.yaml",
    "kind": "set `hardware` in a model.yaml",
    "gpus": "set `hardware` in a model.yaml",
    "optional": "every input of the graph has to be sent",
}


@dataclass(frozen=True, slots=True)
class Warmup:
    """Runs before a version serves: `runs` of `rows` rows, with these arrays."""

    name: str
    rows: int
    runs: int
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What is acted on."""

    file: str
    message: pb.ModelConfig
    versions: Versions
    max_batch_size: int | None
    """None where the file does not say: the graph decides. 0: requests are never merged."""
    instances: int
    warnings: Sequence[str]

    def problems(self, signature: Signature) -> Iterator[str]:
        """How the inputs and outputs of the file differ from those of a graph."""
        for kind, told, specs in (
            ("input", self.message.input, signature.inputs),
            ("output", self.message.output, signature.outputs),
        ):
            known = {spec.name: spec for spec in specs}
            for tensor in told:
                spec = known.get(tensor.name)
                if spec is None:
                    there = ", ".join(map(str, specs)) or "none"
                    yield f"{kind} {tensor.name!r} is not one of the graph's (there are: {there})"
                else:
                    yield from self._differs(kind, tensor, spec)
            missing = [str(spec) for spec in specs if spec.name not in {tensor.name for tensor in told}]
            if told and kind == "input" and missing:
                yield f"input: nothing is said of the graph's {', '.join(missing)}; name every input or none"

    def _differs(self, kind: str, tensor: "pb.ModelInput | pb.ModelOutput", spec: TensorSpec) -> Iterator[str]:
        dtype = DTYPES.get(tensor.data_type)
        if tensor.data_type != pb.TYPE_INVALID and dtype != spec.dtype:
            yield f"{kind} {spec.name}: data_type is {pb.DataType.Name(tensor.data_type)}, the graph has {spec}"
        # With max_batch_size the batch dimension is left out; the graph has it.
        shape = spec.shape[1:] if self.max_batch_size else spec.shape
        told = tuple(tensor.dims)
        if not _fits(told, shape) and not (self.max_batch_size is None and _fits_either(told, spec.shape)):
            batch = " (after the batch dimension)" if self.max_batch_size else ""
            yield f"{kind} {spec.name}: dims are {list(told)}, the graph has {spec}{batch}"

    def warmups(self, signature: Signature, folder: Path) -> Iterator[Warmup]:
        """The arrays of `model_warmup`. Raises ConfigError for what cannot be made."""
        specs = {spec.name: spec for spec in signature.inputs}
        for entry in self.message.model_warmup:
            name = entry.name or "warmup"
            rows = max(entry.batch_size, 1)
            unknown = entry.inputs.keys() ^ specs.keys()
            if unknown:
                raise self._wrong(f"model_warmup {name}: its inputs differ from the graph's in {_listed(unknown)}")
            arrays = {
                input_name: self._warmup_array(
                    f"model_warmup {name}: {input_name}", told, specs[input_name], rows, folder=folder
                )
                for input_name, told in entry.inputs.items()
            }
            yield Warmup(name, rows, min(max(entry.count, 1), WARMUP_RUNS_MAX), arrays)

    def _warmup_array(
        self, where: str, told: "pb.ModelWarmup.Input", spec: TensorSpec, rows: int, *, folder: Path
    ) -> Array:
        if DTYPES.get(told.data_type) != spec.dtype:
            raise self._wrong(f"{where}: data_type is {pb.DataType.Name(told.data_type)}, the graph has {spec}")
        shape = [*([] if self.max_batch_size == 0 else [rows]), *told.dims]
        if any(size < 1 for size in shape):
            raise self._wrong(f"{where}: dims are {list(told.dims)}; a warm-up needs numbers above 0")
        if spec.dtype == "string":
            if told.WhichOneof("input_data_type") == "input_data_file":
                raise self._wrong(f"{where}: input_data_file of strings is not read; use zero_data")
            return np.full(shape, "", object)
        dtype = np.dtype(spec.dtype)
        match told.WhichOneof("input_data_type"):
            case "random_data":
                # From a fixed seed: a warm-up is the same each time.
                return np.random.default_rng(0).integers(0, 2, shape, np.int8).astype(dtype)
            case "input_data_file":
                return self._from_file(where, folder / "warmup", told.input_data_file, np.zeros(shape, dtype))
            case _:
                return np.zeros(shape, dtype)

    def _from_file(self, where: str, folder: Path, name: str, like: Array) -> Array:
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise self._wrong(f"{where}: input_data_file {name!r} lies outside the model's folder warmup/")
        if path.exists() and not path.is_file():
            raise self._wrong(f"{where}: {path} is no regular file")
        try:
            values = np.fromfile(path, like.dtype, count=like.size + 1)
        except OSError as error:
            raise self._wrong(f"{where}: {path} cannot be read: {error.strerror}") from error
        if self.max_batch_size != 0 and values.size * len(like) == like.size:
            values = np.tile(values, len(like))  # the file has one request, as Triton's have
        if values.size != like.size:
            has = str(values.size) if values.size < like.size else "more"
            raise self._wrong(f"{where}: {path} has {has} values, {list(like.shape)} takes {like.size}")
        return values.reshape(like.shape)

    def _wrong(self, message: str) -> ConfigError:
        return ConfigError([Problem(self.file, 0, "", message)])


def read(path: Path, name: str) -> TritonConfig:
    """Read the config.pbtxt of the model `name`. Raises ConfigError with what is wrong in it."""
    file = str(path)
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError([Problem(file, 0, "", f"is larger than {CONFIG_BYTES_MAX >> 20} MiB")])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(file, 0, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(file, 0, "", f"is not UTF-8: {error.reason} at byte {error.start}")]) from error
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        # The message begins with line:column.
        said = re.sub(r"^\d+:\d+\s*:\s*", "", str(error))
        raise ConfigError([Problem(file, error.GetLine() or 0, "", said)]) from error
    lines = _Lines(text)
    problems = [Problem(file, lines.of(field), field, said) for field, said in _wrong(message, name)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return TritonConfig(
        file,
        message,
        _versions(message),
        message.max_batch_size if lines.of("max_batch_size") or message.max_batch_size else None,
        max(sum(max(group.count, 1) for group in message.instance_group), 1),
        tuple(_warnings(message, lines)),
    )


def _wrong(message: pb.ModelConfig, name: str) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it)."""
    yield from _unservable(message, name)
    tensors: list[pb.ModelInput | pb.ModelOutput] = [*message.input, *message.output]
    count = [group.count for group in message.instance_group]
    instances = sum(max(one, 1) for one in count)
    if message.max_batch_size < 0:
        yield "max_batch_size", f"is {message.max_batch_size}; it must not be negative"
    if instances > INSTANCES_MAX or min(count, default=0) < 0:
        yield "instance_group", f"asks for {instances} instances; there may be 1 to {INSTANCES_MAX}"
    policy = message.version_policy
    if policy.WhichOneof("policy_choice") == "specific" and not policy.specific.versions:
        yield "version_policy", "is specific and names no version; nothing would serve"
    if len(message.model_warmup) > WARMUPS_MAX:
        yield "model_warmup", f"has {len(message.model_warmup)} entries; there may be {WARMUPS_MAX}"
    for warmup in message.model_warmup:
        if (size := _warmup_bytes(warmup)) > WARMUP_BYTES_MAX:
            said = f"takes {size:,} bytes of inputs; there may be {WARMUP_BYTES_MAX >> 20} MiB"
            yield "model_warmup", f"{warmup.name or 'warmup'} {said}: make batch_size or dims smaller"
    yield from _refused(message, "")
    for tensor in tensors:
        yield from _refused(tensor, f" for {tensor.name}")


def _warmup_bytes(warmup: "pb.ModelWarmup") -> int:
    """What its arrays take; a string counts as the reference to it."""
    dtypes = [DTYPES.get(told.data_type, "string") for told in warmup.inputs.values()]
    each = [np.dtype(object if dtype == "string" else dtype).itemsize for dtype in dtypes]
    counts = [math.prod(max(size, 1) for size in told.dims) for told in warmup.inputs.values()]
    return max(warmup.batch_size, 1) * sum(count * size for count, size in zip(counts, each, strict=True))


def _refused(message: Message, owner: str) -> Iterator[tuple[str, str]]:
    return ((field, f"is set{owner}: it {_REFUSED[field]}") for field, _ in _set_fields(message) if field in _REFUSED)


def _unservable(message: pb.ModelConfig, name: str) -> Iterator[tuple[str, str]]:
    if message.name and message.name != name:
        yield "name", f"is {message.name!r} in the folder {name!r}; make them the same"
    if message.platform not in _PLATFORMS:
        yield "platform", f"is {message.platform!r}; only onnxruntime_onnx is served"
    if message.backend not in _BACKENDS:
        yield "backend", f"is {message.backend!r}; only onnxruntime is served"
    if message.default_model_filename not in {"", GRAPH}:
        yield "default_model_filename", f"is {message.default_model_filename!r}; name the file {GRAPH}"
    if message.model_transaction_policy.decoupled:
        yield "model_transaction_policy", "is decoupled; a request has one answer"


def _versions(message: pb.ModelConfig) -> Versions:
    match message.version_policy.WhichOneof("policy_choice"):
        case "all":
            return "all"
        case "specific":
            return list(message.version_policy.specific.versions)
        case _:
            return LatestUse(latest=message.version_policy.latest.num_versions or 1)


def _warnings(message: pb.ModelConfig, lines: "_Lines") -> Iterator[str]:
    for where, field in dict.fromkeys(_unused(message, "")):
        advice = f"; {_ADVICE[field]}" if field in _ADVICE else ""
        line = lines.of(field)
        yield f"{f'line {line}: ' if line else ''}{where}{field} is set and not acted on{advice}"


def _unused(message: Message, where: str) -> Iterator[tuple[str, str]]:
    """The fields that are set and nothing acts on."""
    acted_on = _ACTED_ON[type(message).__name__]
    for field, value in _set_fields(message):
        if field not in acted_on:
            yield where, field
        elif field in {"input", "output", "instance_group"}:
            for item in value:  # type: ignore[attr-defined]  # these fields are repeated
                yield from _unused(item, f"{field}.")


def _set_fields(message: Message) -> Iterator[tuple[str, object]]:
    return ((descriptor.name, value) for descriptor, value in message.ListFields())


class _Lines:
    """Where a field stands first."""

    def __init__(self, text: str) -> None:
        self._lines = [re.sub(r"#.*", "", line) for line in text.splitlines()]

    def of(self, field: str) -> int:
        """The line, from 1; 0 where the field is not in the file."""
        pattern = re.compile(rf"(?<![\w\"']){re.escape(field)}\s*[:{{\[]")
        return next((number for number, line in enumerate(self._lines, 1) if pattern.search(line)), 0)


def _fits_either(told: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Where the file does not say whether there is a batch dimension, dims may have it or not."""
    return _fits(told, shape) or _fits(told, shape[1:])


def _fits(told: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(told) == len(shape) and all(
        size in {-1, other} or other is None for size, other in zip(told, shape, strict=True)
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

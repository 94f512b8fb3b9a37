"""Real models of many kinds: each is trained and exported here, or taken from an installed package.

A `Specimen` is a graph, the columns that fill its inputs, and what its own library says about the rows, where there is
such a library. `site_of` writes a gateway's files for some of them; `offline` is what ONNX Runtime alone answers. It
builds the inputs by itself and shares no code with the gateway.

Training is seeded and takes a second for all of them; `specimen` keeps what it has built, so each is trained once in a
process.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.running import Site

ROWS = 120
Array: TypeAlias = "np.ndarray[Any, Any]"
_OPSET = 17
_IR = 9


@dataclass(frozen=True)
class Column:
    """A column of the catalogue's dtype `dtype`: an array of [rows], or [rows, length] for a vector."""

    dtype: str
    values: Array
    stored: bool = True
    """In the feature store; otherwise the caller sends it."""


@dataclass(frozen=True)
class Specimen:
    """A model, and rows that it is asked about."""

    name: str
    model: bytes
    inputs: Mapping[str, Mapping[str, Column]]
    """Graph input -> its columns, in their order."""
    said: Mapping[str, Array] = field(default_factory=dict)
    """Output -> what the library that made the model says about the rows."""
    rtol: float = 1e-5
    """How close `said` is: a graph computes in float32 what a library computes in float64."""

    def __repr__(self) -> str:
        return f"<Specimen {self.name}>"

    @property
    def columns(self) -> dict[str, Column]:
        """Every column by its name."""
        return {name: column for columns in self.inputs.values() for name, column in columns.items()}

    @property
    def stored(self) -> dict[str, Column]:
        return {name: column for name, column in self.columns.items() if column.stored}

    @property
    def context(self) -> dict[str, Column]:
        return {name: column for name, column in self.columns.items() if not column.stored}

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())).values)

    def view(self) -> str:
        """The view of its stored columns, as a line of a catalogue."""
        columns = ", ".join(f'{name}: "{column.dtype}"' for name, column in self.stored.items())
        return f"  {self.name}@1: {{entity: thing, columns: {{{columns}}}}}\n"

    def manifest(self, extra: str = "") -> str:
        """Its model.yaml."""
        lines = [f"name: {self.name}", "views:" if self.stored else "views: {}"]
        lines += [f"  row: {{view: {self.name}@1}}"] if self.stored else []
        lines += ["context:"] if self.context else ["context: {}"]
        lines += [f'  {name}: "{column.dtype}"' for name, column in self.context.items()]
        lines.append("inputs:")
        for name, columns in self.inputs.items():
            names = ", ".join(f"row.{column}" if of.stored else column for column, of in columns.items())
            lines.append(f'  "{name}": [{names}]')
        return "\n".join(lines) + "\n" + extra


def site_of(specimens: list[Specimen], folder: Path, redis_url: str) -> Site:
    """Write the files of a gateway that serves them."""
    site = Site(folder)
    views = "".join(one.view() for one in specimens if one.stored)
    (folder / "features.yaml").write_text(f"entities:\n  thing: {{thing: int64}}\nviews:\n{views}")
    for one in specimens:
        add(site, one)
    site.config.write_text(
        "catalogue: features.yaml\nmodels: models\n"
        'grpc: {listen: ["127.0.0.1:0"]}\nhttp: {listen: "127.0.0.1:0"}\n'
        f'store: {{url: "{redis_url}"}}\npipeline: {{store_timeout_ms: 5000}}\n'
    )
    return site


def add(site: Site, one: Specimen, version: int = 1, model: bytes | None = None) -> Path:
    """Put a version of a specimen into the repository of a site; `model` instead of its own graph."""
    path = site.models / one.name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(one.model if model is None else model)
    (site.models / one.name / "model.yaml").write_text(one.manifest())
    return path


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime alone, on one thread as the gateway runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # converters declare shapes that their graphs do not keep
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def offline_inputs(one: Specimen) -> dict[str, Array]:
    """The inputs of the graph for all rows, laid out by numpy alone."""
    inputs: dict[str, Array] = {}
    for node in session_of(one.model).get_inputs():
        dtype = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": "O"}.get(
            node.type, node.type[len("tensor(") : -1]
        )
        parts = [column.values.reshape(one.rows, -1).astype(dtype) for column in one.inputs[node.name].values()]
        whole = np.concatenate(parts, axis=1)
        fixed = [size if isinstance(size, int) else -1 for size in node.shape[1:]]
        inputs[node.name] = whole.reshape(one.rows, *fixed) if fixed else whole[:, 0]
    return inputs


def offline(one: Specimen) -> dict[str, Array]:
    """What ONNX Runtime answers for all rows, output by output."""
    session = session_of(one.model)
    inputs = offline_inputs(one)
    names = [node.name for node in session.get_outputs()]
    if isinstance(session.get_inputs()[0].shape[0], int):  # a fixed batch of one
        runs = [
            session.run(names, {name: array[row : row + 1] for name, array in inputs.items()})
            for row in range(one.rows)
        ]
        return {name: np.concatenate([run[index] for run in runs]) for index, name in enumerate(names)}
    return dict(zip(names, session.run(names, inputs), strict=True))


# -- trees -------------------------------------------------------------------------------------------------------------


def _lightgbm() -> Specimen:
    """A gradient boosted classifier: a label and probabilities out of one matrix, NaN among its columns."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    random = _random()
    columns = {
        "age": Column("float32", random.normal(40, 12, ROWS).astype(np.float32)),
        "visits": Column("int32", random.integers(0, 900, ROWS).astype(np.int32)),
        "member": Column("bool", random.random(ROWS) < 0.4),
        "spent": Column("float64", random.gamma(2, 50, ROWS)),
        "hour": Column("float32", random.integers(0, 24, ROWS).astype(np.float32), stored=False),
    }
    columns["age"].values[::7] = np.nan
    x = _matrix(columns)
    late = ((x[:, 1] > 300) ^ (x[:, 4] > 12)).astype(int)
    trees = lightgbm.LGBMClassifier(n_estimators=30, num_leaves=7, min_child_samples=3, n_jobs=1, verbose=-1)
    trees.fit(x, late)
    model = convert_lightgbm(trees, initial_types=[("x", FloatTensorType([None, 5]))], zipmap=False, target_opset=15)
    said = {"probabilities": trees.predict_proba(x), "label": trees.predict(x)}
    return Specimen("lightgbm", model.SerializeToString(), {"x": columns}, said)


def _xgboost() -> Specimen:
    """A gradient boosted regressor of the other library."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    random = _random()
    columns = {f"f{i}": Column("float32", random.normal(size=ROWS).astype(np.float32)) for i in range(6)}
    x = _matrix(columns)
    trees = xgboost.XGBRegressor(n_estimators=25, max_depth=4, n_jobs=1, random_state=1)
    trees.fit(x, x[:, 0] * x[:, 1] + x[:, 2])
    model = convert_xgboost(trees, initial_types=[("x", FloatTensorType([None, 6]))], target_opset=15)
    said = {"variable": trees.predict(x)[:, None]}
    return Specimen("xgboost", model.SerializeToString(), {"x": columns}, said, rtol=1e-4)


# -- pipelines over strings --------------------------------------------------------------------------------------------


def _sklearn_columns() -> Specimen:
    """A ColumnTransformer: strings, ordinals, scaled numbers, a graph input per column; labels are strings."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    random = _random()
    columns = {
        "city": Column("string[24]", random.choice(np.array(["Zürich", "Genève", "東京", ""], object), ROWS)),
        "plan": Column("string[8]", random.choice(np.array(["free", "pro", "team"], object), ROWS)),
        "age": Column("float32", random.normal(40, 12, ROWS).astype(np.float32)),
        "logins": Column("int64", random.integers(0, 50, ROWS), stored=False),
    }
    frame = pd.DataFrame({name: column.values for name, column in columns.items()})
    target = np.where(frame["city"].isin(["Zürich", "東京"]) & (frame["logins"] > 20), "stays", "leaves")
    encode = ColumnTransformer(
        [
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("plan", OrdinalEncoder(), ["plan"]),
            ("numbers", StandardScaler(), ["age", "logins"]),
        ]
    )
    pipeline = Pipeline([("encode", encode), ("decide", LogisticRegression())]).fit(frame, target)
    model = _skl2onnx(pipeline, {name: column.dtype for name, column in columns.items()})
    said = {"label": pipeline.predict(frame), "probabilities": pipeline.predict_proba(frame)}
    inputs = {name: {name: column} for name, column in columns.items()}
    return Specimen("sklearn_columns", model.SerializeToString(), inputs, said)


def _sklearn_matrix() -> Specimen:
    """Ordinal codes over one matrix of strings, and a forest that answers several numbers a row."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    random = _random()
    words = np.array(["red", "green", "blue", "black"], object)
    columns = {name: Column("string[6]", random.choice(words, ROWS)) for name in ("first", "second", "third")}
    x = np.stack([column.values for column in columns.values()], axis=1)
    y = np.stack([(x[:, 0] == "red") * 2.0, (x[:, 1] == x[:, 2]) * 1.0], axis=1)
    forest = RandomForestRegressor(n_estimators=8, max_depth=5, random_state=1, n_jobs=1)
    pipeline = make_pipeline(OrdinalEncoder(), forest).fit(x, y)
    model = to_onnx(pipeline, initial_types=[("x", StringTensorType([None, 3]))], target_opset=15)
    return Specimen("sklearn_matrix", model.SerializeToString(), {"x": columns}, {"variable": pipeline.predict(x)})


def _sklearn_text() -> Specimen:
    """TF-IDF over a sentence that the caller sends: operators of Microsoft's domain, a vocabulary inside the graph."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    random = _random()
    words = np.array(["cheap", "watch", "meeting", "monday", "offer", "lunch", "now"], object)
    texts = np.array([" ".join(random.choice(words, 6)) for _ in range(ROWS)], object)
    spam = np.array(["offer" in text for text in texts]).astype(int)
    words_of, decide = TfidfVectorizer(lowercase=False), LogisticRegression()
    pipeline = make_pipeline(words_of, decide).fit(texts, spam)
    model = to_onnx(
        pipeline,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={id(decide): {"zipmap": False}, id(words_of): {"tokenexp": "[a-zA-Z]+"}},
        target_opset=15,
    )
    columns = {"text": Column("string[80]", texts, stored=False)}
    said = {"label": pipeline.predict(texts), "probabilities": pipeline.predict_proba(texts)}
    return Specimen("sklearn_text", model.SerializeToString(), {"text": columns}, said)


# -- networks ----------------------------------------------------------------------------------------------------------


def _wide_and_deep() -> Specimen:
    """Wide: weights looked up by int64 categories. Deep: a network over dense floats and an embedding. Three inputs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    random = _random()
    sizes = (5, 12)
    columns = {
        "country": Column("int64", random.integers(0, sizes[0], ROWS)),
        "device": Column("int32", random.integers(0, sizes[1], ROWS).astype(np.int32), stored=False),
        "price": Column("float32", random.normal(size=ROWS).astype(np.float32)),
        "age": Column("float32", random.normal(size=ROWS).astype(np.float32)),
        "taste": Column("float32[16]", random.normal(size=(ROWS, 16)).astype(np.float32)),
    }
    names = ("country", "device")
    wide = np.concatenate([np.eye(size)[columns[name].values] for size, name in zip(sizes, names, strict=True)], 1)
    deep = np.concatenate([_matrix({name: columns[name] for name in ("price", "age")}), columns["taste"].values], 1)
    y = ((deep @ random.normal(size=18) + wide @ random.normal(size=17)) > 0).astype(int)
    linear = LogisticRegression().fit(wide, y)
    network = MLPClassifier(hidden_layer_sizes=(24, 12), max_iter=60, random_state=1).fit(deep, y)
    starts = np.int64([0, sizes[0]])  # a category's place among all of them
    weights = {
        "starts": starts,
        "table": linear.coef_[0].astype(np.float32),
        "bias": linear.intercept_.astype(np.float32),
        "last": np.int64([1]),
        **{f"w{i}": w.astype(np.float32) for i, w in enumerate(network.coefs_)},
        **{f"b{i}": b.astype(np.float32) for i, b in enumerate(network.intercepts_)},
    }
    nodes = [
        helper.make_node("Add", ["categories", "starts"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["looked_up"]),
        helper.make_node("ReduceSum", ["looked_up", "last"], ["wide_sum"], keepdims=1),
        helper.make_node("Add", ["wide_sum", "bias"], ["wide"]),
        helper.make_node("Concat", ["dense", "embedding"], ["h0"], axis=1),
        *_layers("h0", 3, "deep"),
        helper.make_node("Add", ["wide", "deep"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    model = graph(
        nodes,
        {
            "categories": ("int64", ["rows", 2]),
            "dense": ("float32", ["rows", 2]),
            "embedding": ("float32", ["rows", 16]),
        },
        {"probability": ("float32", ["rows", 1])},
        weights,
    )
    hidden = deep
    for w, b in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        hidden = np.maximum(hidden @ w + b, 0)
    logit = (
        hidden @ network.coefs_[-1] + network.intercepts_[-1] + (wide @ linear.coef_[0] + linear.intercept_)[:, None]
    )
    inputs = {
        "categories": {name: columns[name] for name in names},
        "dense": {name: columns[name] for name in ("price", "age")},
        "embedding": {"taste": columns["taste"]},
    }
    return Specimen("wide_and_deep", model, inputs, {"probability": 1 / (1 + np.exp(-logit))}, rtol=1e-4)


def _perceptron() -> tuple[Array, bytes]:
    """Rows of eight floats, and a small trained network over them."""
    from sklearn.neural_network import MLPRegressor

    random = _random()
    x = random.normal(size=(ROWS, 8)).astype(np.float32)
    network = MLPRegressor(hidden_layer_sizes=(32, 16), max_iter=80, random_state=1).fit(
        x, np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    )
    weights = {f"w{i}": w.astype(np.float32) for i, w in enumerate(network.coefs_)}
    weights |= {f"b{i}": b.astype(np.float32) for i, b in enumerate(network.intercepts_)}
    model = graph(_layers("x", 3, "y"), {"x": ("float32", ["rows", 8])}, {"y": ("float32", ["rows", 1])}, weights)
    return x, model


def _float16() -> Specimen:
    """A network in half precision, with a half precision vector in the store."""
    x, model = _perceptron()
    loaded = onnx.load_from_string(model)
    weights = {one.name: numpy_helper.to_array(one).astype(np.float16) for one in loaded.graph.initializer}
    half = graph(list(loaded.graph.node), {"x": ("float16", ["rows", 8])}, {"y": ("float16", ["rows", 1])}, weights)
    return Specimen("float16", half, {"x": {"vector": Column("float16[8]", x.astype(np.float16))}})


def _int8() -> Specimen:
    """The same network in eight bits, by ONNX Runtime's own tool.

    Quantised statically: a scale that is worked out from the batch at run time would make an answer depend on the other
    rows of the batch. That model is `dynamic_int8`.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    x, model = _perceptron()

    class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped here
        batches = iter([{"x": x}])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    small = _quantised(model, lambda source, target: quantize_static(source, target, Calibration()))
    return Specimen("int8", small, {"x": _columns_of(x)})


def _dynamic_int8() -> Specimen:
    """The network quantised dynamically: not one of the specimens, because its rows are not independent."""
    from onnxruntime.quantization import quantize_dynamic

    x, model = _perceptron()
    return Specimen("dynamic_int8", _quantised(model, quantize_dynamic), {"x": _columns_of(x)})


def _quantised(model: bytes, quantise: Callable[[Path, Path], None]) -> bytes:
    with TemporaryDirectory(prefix="headrace-zoo-") as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        quantise(source, target)
        return target.read_bytes()


def _columns_of(x: Array) -> dict[str, Column]:
    return {f"x{i}": Column("float32", np.ascontiguousarray(x[:, i])) for i in range(x.shape[1])}


def _shipped(package: str, path: str) -> bytes:
    """A graph that a package ships."""
    found = [file for file in importlib.metadata.files(package) or () if str(file).endswith(path)]
    return Path(str(found[0].locate())).read_bytes()


def voice_activity() -> bytes:
    """Silero's voice detector, as openWakeWord ships it: a scalar, and states whose rows are their second dimension."""
    return _shipped("openwakeword", "models/silero_vad.onnx")


def _magika() -> Specimen:
    """Google's file type model: a sequence of 2,048 bytes, as a vector of int32 in the store; 214 types out."""
    random = _random()
    values = random.integers(0, 257, (ROWS, 2048)).astype(np.int32)
    text = b'import os\n\ndef main() -> None:\n    print("hello", os.getcwd())\n' * 8
    values[0] = 256  # what stands for padding
    values[0, : len(text)] = [*text]
    columns = {"content": Column("int32[2048]", values)}
    return Specimen("magika", _shipped("magika", "models/standard_v3_3/model.onnx"), {"bytes": columns})


def _speech_embedding() -> Specimen:
    """Google's speech embedding, as openWakeWord ships it: a mel spectrogram of 76 by 32 (an image) to 96 numbers."""
    values = _random().normal(size=(40, 76 * 32)).astype(np.float32)
    columns = {"spectrogram": Column("float32[2432]", values)}
    return Specimen("speech_embedding", _shipped("openwakeword", "models/embedding_model.onnx"), {"input_1": columns})


def _fixed_batch() -> Specimen:
    """openWakeWord's timer model: exported for one row a run, with JSON for the name of its output."""
    values = _random().normal(size=(9, 34 * 96)).astype(np.float32)
    columns = {"embeddings": Column("float32[3264]", values)}
    return Specimen("fixed_batch", _shipped("openwakeword", "models/timer_v0.1.onnx"), {"onnx::Flatten_0": columns})


# -- shapes and dtypes -------------------------------------------------------------------------------------------------


def _dtypes() -> Specimen:
    """Every dtype that a column may have, each through an input and an output of its own."""
    random = _random()
    whole = {f"int{bits}": random.integers(-100, 100, ROWS).astype(f"int{bits}") for bits in (8, 16, 32, 64)}
    floats = {f"float{bits}": random.normal(size=ROWS).astype(f"float{bits}") for bits in (16, 32, 64)}
    columns = {f"c_{name}": Column(name, values) for name, values in (whole | floats).items()}
    columns["c_bool"] = Column("bool", random.random(ROWS) < 0.5)
    columns["c_string"] = Column("string[16]", np.array([f"né-{i}" for i in range(ROWS)], object))
    columns["c_uint8"] = Column("bool", random.random(ROWS) < 0.5)
    types = {f"in_{name}": (name[len("c_") :], ["rows", 1]) for name in columns}
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in columns]
    outputs = {f"out_{name}": (name[len("c_") :], ["rows", 1]) for name in columns}
    model = graph(nodes, types, outputs, {})
    return Specimen("dtypes", model, {f"in_{name}": {name: column} for name, column in columns.items()})


def _shapes() -> Specimen:
    """Inputs of one, two and four dimensions, open and fixed; outputs of one, two and three, and one of strings."""
    random = _random()
    columns = {
        "weight": Column("float32", random.normal(size=ROWS).astype(np.float32)),
        "tokens": Column("int64[6]", random.integers(0, 50, (ROWS, 6))),
        "image": Column("float32[12]", random.normal(size=(ROWS, 12)).astype(np.float32)),
        "name": Column("string[12]", np.array([f"name {i % 7}" for i in range(ROWS)], object), stored=False),
    }
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedded"]),  # [rows, n, 4]
        helper.make_node("ReduceMean", ["embedded"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("Unsqueeze", ["weight", "last"], ["weights"]),
        helper.make_node("Mul", ["pooled", "weights"], ["vector"]),
        helper.make_node("ReduceSum", ["vector", "last"], ["score"], keepdims=0),
        helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 2, 3, 1]),
        helper.make_node("Identity", ["name"], ["who"]),
    ]
    model = graph(
        nodes,
        {
            "weight": ("float32", ["rows"]),
            "tokens": ("int64", ["rows", "length"]),
            "image": ("float32", ["rows", 3, 2, 2]),
            "name": ("string", ["rows", 1]),
        },
        {
            "embedded": ("float32", ["rows", "length", 4]),
            "vector": ("float32", ["rows", 4]),
            "score": ("float32", ["rows"]),
            "turned": ("float32", ["rows", 2, 2, 3]),
            "who": ("string", ["rows", 1]),
        },
        {"table": random.normal(size=(50, 4)).astype(np.float32), "last": np.int64([1])},
    )
    return Specimen("shapes", model, {name: {name: column} for name, column in columns.items()})


_MAKERS: Mapping[str, Callable[[], Specimen]] = {
    maker.__name__[1:]: maker
    for maker in (
        _lightgbm,
        _xgboost,
        _sklearn_columns,
        _sklearn_matrix,
        _sklearn_text,
        _wide_and_deep,
        _float16,
        _int8,
        _dynamic_int8,
        _magika,
        _speech_embedding,
        _fixed_batch,
        _dtypes,
        _shapes,
    )
}
NAMES = tuple(name for name in _MAKERS if name != "dynamic_int8")


@cache
def specimen(name: str) -> Specimen:
    """The model of this name, trained once."""
    with warnings.catch_warnings():  # other libraries', about themselves
        warnings.simplefilter("ignore")
        return _MAKERS[name]()


def graph(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[str, list[int | str | None]]],
    outputs: Mapping[str, tuple[str, list[int | str | None]]],
    weights: Mapping[str, Array],
    opset: int = _OPSET,
) -> bytes:
    """A model of these nodes; inputs and outputs are name -> (dtype, shape)."""

    def infos(specs: Mapping[str, tuple[str, list[int | str | None]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, _element(dtype), shape) for name, (dtype, shape) in specs.items()]

    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "specimen", infos(inputs), infos(outputs), initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR)
    return model.SerializeToString()


def _element(dtype: str) -> int:
    return TensorProto.STRING if dtype == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _layers(source: str, count: int, target: str) -> list[onnx.NodeProto]:
    """Dense layers with the weights w0, b0, w1, …, ReLU between them."""
    nodes: list[onnx.NodeProto] = []
    for index in range(count):
        last = index == count - 1
        nodes.append(helper.make_node("Gemm", [source, f"w{index}", f"b{index}"], [target if last else f"g{index}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{index}"], [f"r{index}"]))
            source = f"r{index}"
    return nodes


def _skl2onnx(pipeline: Any, dtypes: Mapping[str, str]) -> onnx.ModelProto:
    """Export a pipeline whose columns are inputs of their own."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    types = {"string": StringTensorType, "float32": FloatTensorType, "int64": Int64TensorType}
    initial = [(name, types[dtype.partition("[")[0]]([None, 1])) for name, dtype in dtypes.items()]
    return to_onnx(pipeline, initial_types=initial, options={"zipmap": False}, target_opset=15)


def _random() -> np.random.Generator:
    return np.random.default_rng(20_130_501)


def _matrix(columns: Mapping[str, Column]) -> Array:
    return np.stack([column.values.astype(np.float32) for column in columns.values()], axis=1)

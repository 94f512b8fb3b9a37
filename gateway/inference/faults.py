"""What ONNX Runtime says about a graph it cannot load or run, in words that say what to do. Pure.

ONNX Runtime's own message stays, cut to one line and without the places in its source; advice comes after it.
"""

import re

_LENGTH_MAX = 600
_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Load model from .*? failed:"),
    re.compile(r"/\S+?\.(?:cc|h):\d+ (?:[^()]*\([^()]*\)(?: const)?(?: \[with [^\]]*\])? )?"),
    re.compile(r"\b\w+\.(?:cc|h):\d+ (?:operator\(\)|\w+) "),
)
_MEMORY = re.compile(r"Available memory of \d+ is smaller|Failed to allocate|bad_alloc|[Oo]ut of memory|OUT_OF_MEMORY")
_OPTION = re.compile(r"[Uu]nknown provider option|[Ii]nvalid \S+ EP option|Unrecognized provider option")
_ADVICE = (
    (
        r"Protobuf parsing failed|INVALID_PROTOBUF|No graph was found in the protobuf",
        "the file is not an ONNX model, or it was cut short; copy it again and compare checksums",
    ),
    (
        r"Opset \d+ is under development|till opset",
        "export the model for an older opset (`target_opset`), or install a newer onnxruntime",
    ),
    (
        r"Unsupported model IR version",
        "save the model with an older IR version, or install a newer onnxruntime",
    ),
    (
        r"External (?:data|initializer)|Deserialize tensor",
        "the files of external data must lie beside model.onnx, under the names that it was saved with, and whole",
    ),
    (
        r"is not a registered function/op|No opset import for domain|No Op registered for",
        "it uses operators that ONNX Runtime does not have; custom operators are not loaded (they are native code), "
        "so export the model with standard ones",
    ),
    (
        r"NOT_IMPLEMENTED|Could not find an implementation",
        "this build of ONNX Runtime has no kernel for an operator with this type; export it with another type",
    ),
    (
        _MEMORY,
        "a run needs more memory than there is or than inference.memory_max_mb allows; lower execution.max_batch_rows, "
        "or raise the limit",
    ),
    (
        _OPTION,
        "an option in hardware.providers is not one of this provider's",
    ),
    (
        r"graph capture|cuda graph|CUDA graph",
        "cuda_graphs wants every node of the graph on CUDA; set cuda_graphs: false",
    ),
)


def explained(message: str) -> str:
    """Return ONNX Runtime's message in one line, with advice where it is known."""
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), "")
    text = shortened(message)
    return f"{text}: {advice}" if advice else text


def is_for_memory(message: str) -> bool:
    """Whether it says that memory was not to be had."""
    return _MEMORY.search(message) is not None


def is_for_option(message: str) -> bool:
    """Whether it says that a provider does not know one of its options."""
    return _OPTION.search(message) is not None


def shortened(message: str) -> str:
    """Return the message in one line of bounded length, without the places in ONNX Runtime's source."""
    for noise in _NOISE:
        message = noise.sub("", message)
    text = " ".join(message.split()).rstrip(" .:")
    return text if len(text) <= _LENGTH_MAX else text[: _LENGTH_MAX - 1] + "…"

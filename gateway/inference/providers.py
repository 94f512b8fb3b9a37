"""Which execution providers a model asks for, and which of them this build of ONNX Runtime has.

    settings `inference.hardware` ─┐
    manifest `hardware:` ──────────┴─▶ Hardware ──resolve(available)──▶ Resolved ──▶ Session

A provider goes by a short name here, in settings, manifests and metadata. Options of a provider are ONNX Runtime's own,
by its names. Pure: what is available is an argument.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

from gateway.plan.manifest import HardwareUse

OptionValue = bool | int | float | str
Asked = str | dict[str, dict[str, OptionValue]]


class _Known(NamedTuple):
    name: str
    """What ONNX Runtime calls it."""
    package: str
    """What to install to have it."""
    device_option: str = ""
    """The option that takes the number of the device; empty where there is none."""
    threads_option: str = ""
    """The option that takes the number of threads, of one that runs on the CPU; it takes all cores without."""


_KNOWN = {
    "tensorrt": _Known("TensorrtExecutionProvider", "onnxruntime-gpu and tensorrt-cu12", "device_id"),
    "cuda": _Known("CUDAExecutionProvider", "onnxruntime-gpu[cuda,cudnn]", "device_id"),
    "openvino": _Known("OpenVINOExecutionProvider", "onnxruntime-openvino", threads_option="num_of_threads"),
    "coreml": _Known("CoreMLExecutionProvider", "onnxruntime on macOS"),
    "directml": _Known("DmlExecutionProvider", "onnxruntime-directml on Windows", "device_id"),
    "migraphx": _Known("MIGraphXExecutionProvider", "onnxruntime-migraphx (AMD's own wheels)", "device_id"),
    "qnn": _Known("QNNExecutionProvider", "onnxruntime-qnn"),
    "xnnpack": _Known(
        "XnnpackExecutionProvider",
        "a build of ONNX Runtime with --use_xnnpack",
        threads_option="intra_op_num_threads",
    ),
    "cpu": _Known("CPUExecutionProvider", "onnxruntime"),
}
_SHORT = {known.name: short for short, known in _KNOWN.items()}

_AUTO = ("cuda", "migraphx", "directml")
"""What `auto` takes where the build has it, before the CPU. TensorRT is not among them: it builds an engine for each
shape, which takes from seconds to minutes. Nor are those that run on the same CPU, or on a device that pays for few
graphs."""

_OWN_OPTIONS = re.compile(
    r"path|dir$|file|lib|plugin|external|stream|dump|cache|allocator|callback|load_config|(^|_)context$|backend"
)
"""Options that name files and libraries to load or write, or addresses in memory. A model repository is data: only the
server's own settings may set them."""

Optimization = Literal["off", "basic", "extended", "all"]


class HardwareError(ValueError):
    """Hardware that is asked for wrongly, or is required and not there; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What graphs run on. A manifest's `hardware:` overrides each of these for its model."""

    providers: Literal["auto"] | tuple[Asked, ...] = "auto"
    """`auto`, or a list in order of preference out of tensorrt, cuda, openvino, coreml, directml, migraphx, qnn,
    xnnpack and cpu, each as a name or as `{name: {option: value}}` with ONNX Runtime's own options. `auto` takes
    CUDA, MIGraphX or DirectML where ONNX Runtime has it, else the CPU."""
    require: bool = False
    """Refuse a model that would run on less than asked. Otherwise that is a warning, a metric and a field of its
    metadata."""
    device_id: int = 0
    """Which of several devices of a kind."""
    intra_op_threads: int = 0
    """Threads inside one run. 0: as many as `inference.intra_op_threads` says."""
    graph_optimization: Optimization = "all"
    """How far ONNX Runtime rewrites a graph before it runs it."""
    arena: bool = True
    """Keep the memory of a run for the next one. Without it a model holds less between runs, and each run asks the
    system for memory."""
    device_memory_limit_mb: int = 0
    """Memory that the arena of one model may take on a CUDA device, MiB; a run that needs more fails. 0: no limit."""
    cuda_graphs: bool = False
    """Record the kernels of a run once for each shape and replay them. For graphs that run on CUDA as a whole; pays
    where launching the kernels takes longer than they do."""
    fp16: bool = False
    """TensorRT may compute in float16."""
    int8: bool = False
    """TensorRT may compute in int8; the graph must carry its scales (a quantised one does)."""

    def __post_init__(self) -> None:
        if self.device_id < 0:
            raise HardwareError("device_id must not be negative")
        if self.intra_op_threads < 0:
            raise HardwareError("intra_op_threads must not be negative")
        if self.device_memory_limit_mb < 0:
            raise HardwareError("device_memory_limit_mb must not be negative")
        names = [name for name, _ in self.asked]
        if not names:
            raise HardwareError("providers is empty; write `auto` or name at least one")
        for name in names:
            if name not in _KNOWN:
                raise HardwareError(f"no provider {name!r} (there are: auto, {', '.join(_KNOWN)})")
            if names.count(name) > 1:
                raise HardwareError(f"provider {name} is named twice")

    @property
    def asked(self) -> tuple[tuple[str, Mapping[str, OptionValue]], ...]:
        """The providers asked for with their options. Those of `auto` before it is known what is available."""
        if self.providers == "auto":
            return tuple((name, {}) for name in (*_AUTO, "cpu"))
        return tuple(_named(self.providers))

    def overridden(self, use: HardwareUse) -> "Hardware":
        """Return this hardware with what a manifest sets. Raises `HardwareError`."""
        given = {field.name: value for field in fields(self) if (value := getattr(use, field.name, None)) is not None}
        if isinstance(given.get("providers"), list):
            given["providers"] = tuple(given["providers"])
            for name, options in _named(given["providers"]):
                for option in options:
                    if _OWN_OPTIONS.search(option):
                        raise HardwareError(
                            f"option {option} of {name} names a file, a library or an address; "
                            "only the server's settings may set it (inference.hardware.providers)"
                        )
        return replace(self, **given)


class Resolved(NamedTuple):
    """What a session is to be made with."""

    asked: tuple[str, ...]
    """Short names, in order; of `auto`, those that are there."""
    providers: tuple[tuple[str, dict[str, str]], ...]
    """Short names of those that are there, with ONNX Runtime's options. Ends with the CPU."""
    missing: tuple[str, ...]
    """What was asked for and is not there, with what to do."""

    auto: bool
    """Whether it was left to the server what to take."""

    @property
    def accelerated(self) -> bool:
        """Whether anything but the CPU provider is to be tried."""
        return len(self.providers) > 1

    def without_first(self) -> "Resolved":
        """The same without the most preferred provider."""
        return self._replace(providers=self.providers[1:])

    def without_options(self, names: Sequence[str]) -> "Resolved":
        """The same without these options."""
        return self._replace(
            providers=tuple(
                (provider, {name: value for name, value in options.items() if name not in names})
                for provider, options in self.providers
            )
        )


def resolve(hardware: Hardware, available: Sequence[str], *, threads: int = 1, engine_cache: str = "") -> Resolved:
    """Match what is asked for with ONNX Runtime's `available` names. Raises `HardwareError` where it is required.

    `threads` are for providers that run on the CPU with threads of their own.
    """
    present = {short_name(name) for name in available}
    asked = tuple(name for name, _ in hardware.asked)
    if hardware.providers == "auto":
        asked = tuple(name for name in asked if name in present)
    missing = tuple(
        f"{name} is not in this build of ONNX Runtime (it has: {_listed(present)}); install {_KNOWN[name].package}"
        for name in asked
        if name not in present
    )
    if missing and hardware.require:
        raise HardwareError("; ".join(missing))
    options = dict(hardware.asked)
    taken = [
        (name, _own(name, hardware, threads, engine_cache) | _texts(name, options[name]))
        for name in asked
        if name in present
    ]
    if "cpu" not in asked:
        # ONNX Runtime has it in every session, for the nodes that no other provider takes.
        taken.append(("cpu", {}))
    return Resolved(asked, tuple(taken), missing, hardware.providers == "auto")


def short_name(name: str) -> str:
    """Return the short name of one of ONNX Runtime's providers; one that is not known here is given back as it is."""
    return _SHORT.get(name, name)


def full_name(short: str) -> str:
    """Return ONNX Runtime's name of a provider."""
    return _KNOWN[short].name


def _named(providers: Sequence[Asked]) -> Iterator[tuple[str, Mapping[str, OptionValue]]]:
    for provider in providers:
        if isinstance(provider, str):
            yield provider, {}
        else:
            yield from provider.items()


def _own(name: str, hardware: Hardware, threads: int, engine_cache: str) -> dict[str, str]:
    """The options of one provider that follow from the settings."""
    options: dict[str, OptionValue] = {}
    if option := _KNOWN[name].device_option:
        options[option] = hardware.device_id
    if option := _KNOWN[name].threads_option:
        options[option] = threads
    if name == "cuda":
        options |= _cuda(hardware)
    if name == "tensorrt":
        options |= _tensorrt(hardware, engine_cache)
    return _texts(name, options)


def _cuda(hardware: Hardware) -> Mapping[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    if hardware.device_memory_limit_mb:
        options["gpu_mem_limit"] = hardware.device_memory_limit_mb << 20
    if not hardware.arena or hardware.device_memory_limit_mb:
        options["arena_extend_strategy"] = "kSameAsRequested"
    if hardware.cuda_graphs:
        options["enable_cuda_graph"] = True
    return options


def _tensorrt(hardware: Hardware, engine_cache: str) -> Mapping[str, OptionValue]:
    options: dict[str, OptionValue] = {"trt_fp16_enable": hardware.fp16, "trt_int8_enable": hardware.int8}
    if hardware.cuda_graphs:
        options["trt_cuda_graph_enable"] = True
    if engine_cache:
        for cache in ("engine", "timing"):
            options |= {f"trt_{cache}_cache_enable": True, f"trt_{cache}_cache_path": engine_cache}
    return options


def _texts(provider: str, options: Mapping[str, OptionValue]) -> dict[str, str]:
    return {option: _text(provider, value) for option, value in options.items()}


def _text(provider: str, value: OptionValue) -> str:
    if isinstance(value, bool):
        # OpenVINO reads True and False, the others 1 and 0.
        return str(value) if provider == "openvino" else str(int(value))
    return str(value)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names & _KNOWN.keys())) or "none"

"""What a model asks for, against what a build of ONNX Runtime has."""

from typing import Any

import pytest

from gateway.inference.providers import Hardware, HardwareError, resolve
from gateway.plan.manifest import HardwareUse

CPU = ["AzureExecutionProvider", "CPUExecutionProvider"]
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(("available", "taken"), [(CPU, ["cpu"]), (GPU, ["cuda", "cpu"])])
def test_auto_takes_what_is_there(available: list[str], taken: list[str]) -> None:
    resolved = resolve(Hardware(), available)
    assert [name for name, _ in resolved.providers] == taken
    assert resolved.asked == tuple(taken)
    assert not resolved.missing


def test_the_order_is_kept_and_the_cpu_is_always_last() -> None:
    resolved = resolve(Hardware(("tensorrt", "cuda")), GPU)
    assert [name for name, _ in resolved.providers] == ["tensorrt", "cuda", "cpu"]
    assert resolved.asked == ("tensorrt", "cuda")


def test_what_is_missing_is_named_with_what_exists_and_what_brings_it() -> None:
    resolved = resolve(Hardware(("openvino", "cuda", "cpu")), GPU)
    assert [name for name, _ in resolved.providers] == ["cuda", "cpu"]
    (missing,) = resolved.missing
    assert "openvino is not in this build" in missing
    assert "it has: cpu, cuda, tensorrt" in missing
    assert "install onnxruntime-openvino" in missing


def test_what_is_missing_is_refused_where_it_is_required() -> None:
    with pytest.raises(HardwareError, match="cuda is not in this build"):
        resolve(Hardware(("cuda", "cpu"), require=True), CPU)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"providers": ("cudo",)}, "no provider 'cudo' .*tensorrt, cuda"),
        ({"providers": ("cuda", {"cuda": {}})}, "cuda is named twice"),
        ({"providers": ()}, "providers is empty"),
        ({"device_id": -1}, "device_id"),
        ({"intra_op_threads": -1}, "intra_op_threads"),
        ({"device_memory_limit_mb": -1}, "device_memory_limit_mb"),
    ],
)
def test_wrong_hardware(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(HardwareError, match=said):
        Hardware(**wrong)


def test_options_of_cuda() -> None:
    hardware = Hardware(
        ({"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}},),
        device_id=1,
        device_memory_limit_mb=512,
        cuda_graphs=True,
    )
    (name, options), _ = resolve(hardware, GPU).providers
    assert name == "cuda"
    assert options == {
        "device_id": "1",
        "gpu_mem_limit": str(512 << 20),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def test_options_of_tensorrt() -> None:
    hardware = Hardware(({"tensorrt": {"device_id": 3, "trt_int8_enable": True}}, "cuda"), fp16=True, device_id=1)
    (_, options), (_, cuda), _ = resolve(hardware, GPU, engine_cache="/var/cache/engines").providers
    assert options["device_id"] == "3"  # what is said of the provider goes before what is said of all
    assert cuda["device_id"] == "1"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("1", "1")
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "/var/cache/engines")


def test_truth_as_openvino_writes_it() -> None:
    hardware = Hardware(({"openvino": {"enable_opencl_throttling": True}},))
    (_, options), _ = resolve(hardware, ["OpenVINOExecutionProvider", "CPUExecutionProvider"]).providers
    assert options == {"enable_opencl_throttling": "True", "num_of_threads": "1"}


@pytest.mark.parametrize(
    ("provider", "name", "option"),
    [
        ("openvino", "OpenVINOExecutionProvider", "num_of_threads"),
        ("xnnpack", "XnnpackExecutionProvider", "intra_op_num_threads"),
    ],
)
def test_providers_on_the_cpu_take_no_more_threads_than_it(provider: str, name: str, option: str) -> None:
    (_, options), _ = resolve(Hardware((provider,)), [name, "CPUExecutionProvider"], threads=3).providers
    assert options[option] == "3"
    (_, options), _ = resolve(Hardware(({provider: {option: 5}},)), [name, "CPUExecutionProvider"], threads=3).providers
    assert options[option] == "5"


def test_a_manifest_overrides_what_it_names() -> None:
    server = Hardware(("cuda", "cpu"), require=True, device_id=1)
    use = HardwareUse.model_validate(
        {"providers": [{"tensorrt": {"trt_max_workspace_size": 1}}, "cpu"], "device_id": 0}
    )
    assert server.overridden(use) == Hardware(
        ({"tensorrt": {"trt_max_workspace_size": 1}}, "cpu"), require=True, device_id=0
    )
    assert server.overridden(HardwareUse()) == server


def test_a_manifest_may_say_auto_again() -> None:
    assert Hardware(("cpu",)).overridden(HardwareUse(providers="auto")).providers == "auto"


@pytest.mark.parametrize(
    ("provider", "option"),
    [
        ("tensorrt", "trt_engine_cache_path"),
        ("tensorrt", "trt_extra_plugin_lib_paths"),
        ("tensorrt", "trt_dump_subgraphs"),
        ("tensorrt", "trt_onnx_bytestream"),
        ("cuda", "user_compute_stream"),
        ("cuda", "gpu_external_alloc"),
        ("qnn", "backend_path"),
        ("openvino", "cache_dir"),
        ("openvino", "load_config"),
        ("openvino", "context"),
    ],
)
def test_a_manifest_names_no_files_libraries_or_addresses(provider: str, option: str) -> None:
    use = HardwareUse.model_validate({"providers": [{provider: {option: "x"}}]})
    with pytest.raises(HardwareError, match=f"option {option} of {provider} .* only the server's settings"):
        Hardware().overridden(use)
    Hardware(({provider: {option: "x"}},))  # the server's own settings may

"""What a model looks like to a client of the protocol: ModelMetadata and ModelConfig.

Both show the graph's own inputs. How the same model is asked with entity ids is in the configuration's parameters.
"""

from collections.abc import Iterable, Mapping

from gateway.inference.model import Model
from gateway.records.signature import TensorSpec
from gateway.server.oip import datatypes
from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import model_config_pb2 as config_pb

_BACKEND = "onnxruntime"
_GPU_PROVIDERS = {"cuda", "tensorrt", "migraphx"}


def metadata(model: Model, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """`versions` are those of the same name that serve."""
    batched = model.tensors.plan.batched
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[str(version) for version in sorted(versions)],
        platform=model.facts.platform,
        inputs=[_tensor(spec, batched=batched) for spec in model.signature.inputs],
        outputs=[_tensor(spec, batched=batched) for spec in model.signature.outputs],
    )


def _tensor(spec: TensorSpec, *, batched: bool) -> pb.ModelMetadataResponse.TensorMetadata:
    # A graph that fixes its number of rows takes any number all the same: rows are cut and padded.
    shape = [-1, *_dims(spec.shape[1:])] if batched else _dims(spec.shape)
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=datatypes.BY_SIGNATURE[spec.dtype].name, shape=shape
    )


def config(model: Model) -> config_pb.ModelConfig:
    """The configuration that Triton would show for the same model, as far as Headrace has the thing."""
    execution, facts, batched = model.execution, model.facts, model.tensors.plan.batched
    on_gpu = any(provider in _GPU_PROVIDERS for provider in facts.providers)
    answer = config_pb.ModelConfig(
        name=model.name,
        platform=facts.platform,
        backend=_BACKEND,
        version_policy=config_pb.ModelVersionPolicy(
            specific=config_pb.ModelVersionPolicy.Specific(versions=[model.version])
        ),
        max_batch_size=execution.max_batch_rows if batched else 0,
        instance_group=[
            config_pb.ModelInstanceGroup(
                name=model.name,
                count=execution.instances,
                kind=config_pb.ModelInstanceGroup.KIND_GPU if on_gpu else config_pb.ModelInstanceGroup.KIND_CPU,
            )
        ],
        default_model_filename="model.onnx",
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )
    for spec in model.signature.inputs:
        answer.input.add(name=spec.name, data_type=_type(spec), dims=_dims(spec.shape[1:] if batched else spec.shape))
    for spec in model.signature.outputs:
        answer.output.add(name=spec.name, data_type=_type(spec), dims=_dims(spec.shape[1:] if batched else spec.shape))
    if batched:
        # What waits when the model is free is its next batch; there is no delay.
        answer.dynamic_batching.SetInParent()
        answer.dynamic_batching.priority_levels = execution.priority_levels
        answer.dynamic_batching.default_priority_level = execution.default_priority
    for name, text in _parameters(model).items():
        answer.parameters[name].string_value = text
    return answer


def _parameters(model: Model) -> Mapping[str, str]:
    facts, plan = model.facts, model.plan
    entities = [f"{name} ({'INT64' if dtype == 'int64' else 'BYTES'})" for name, dtype in plan.entities.items()]
    said = {
        "headrace_entities": ", ".join(entities),
        "headrace_context": ", ".join(f"{column.name} ({column.dtype})" for column in plan.context),
        "headrace_labels": ", ".join(model.labels),
        "headrace_source": facts.source,
        "headrace_sha256": facts.sha256,
        "headrace_providers": ", ".join(facts.providers),
        "headrace_asked_providers": ", ".join(facts.asked_providers),
        "headrace_nodes": ", ".join(f"{name}: {count}" for name, count in facts.nodes.items()),
        "headrace_warnings": "; ".join(facts.warnings),
    }
    return {name: text for name, text in said.items() if text}


def _type(spec: TensorSpec) -> config_pb.DataType:
    return getattr(config_pb, datatypes.BY_SIGNATURE[spec.dtype].config)  # type: ignore[no-any-return]  # an enum's value


def _dims(shape: Iterable[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape]

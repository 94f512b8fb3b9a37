"""The released API stays: `proto/released.binpb` against today's descriptors, and the comparison against itself.

A failure of the first test means that a client of the last release would break. Additions never fail it; `make
release-api` makes them part of the promise.
"""

from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from tools.compatibility import breaking_changes, current, released


def test_everything_released_is_still_there() -> None:
    assert breaking_changes(released(), current()) == []


def test_the_release_holds_both_services() -> None:
    methods = {
        f"{service.name}.{method.name}" for f in released().file for service in f.service for method in service.method
    }
    assert methods >= {
        "PredictionService.Predict",
        "FeatureService.Get",
        "FeatureService.Write",
        "FeatureService.Delete",
    }


def file_of(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in files.file if file.name == f"headrace/v1/{name}.proto")


def message_of(files: FileDescriptorSet, file: str, name: str) -> DescriptorProto:
    return next(message for message in file_of(files, file).message_type if message.name == name)


def field_of(files: FileDescriptorSet, file: str, message: str, name: str) -> FieldDescriptorProto:
    return next(field for field in message_of(files, file, message).field if field.name == name)


def remove_field(files: FileDescriptorSet) -> None:
    message_of(files, "tensor", "Tensor").field.remove(field_of(files, "tensor", "Tensor", "shape"))


def rename_field(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "Tensor", "shape").name = "sizes"


def renumber_field(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "Tensor", "shape").number = 99


def retype_field(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "Tensor", "shape").type = FieldDescriptorProto.TYPE_INT32


def retype_message_field(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "EntityColumn", "strings").type_name = ".headrace.v1.Int64Ids"


def unrepeat_field(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "Tensor", "shape").label = FieldDescriptorProto.LABEL_OPTIONAL


def lose_presence(files: FileDescriptorSet) -> None:
    field_of(files, "tensor", "Tensor", "raw").ClearField("oneof_index")


def retype_map_value(files: FileDescriptorSet) -> None:
    entry = message_of(files, "prediction", "PredictRequest").nested_type[0]
    entry.field[1].type_name = ".headrace.v1.Tensor"


def remove_message(files: FileDescriptorSet) -> None:
    file_of(files, "tensor").message_type.remove(message_of(files, "tensor", "Int64Ids"))


def move_message(files: FileDescriptorSet) -> None:
    moved = message_of(files, "tensor", "Int64Ids")
    file_of(files, "features").message_type.append(moved)
    file_of(files, "tensor").message_type.remove(moved)


def remove_enum_value(files: FileDescriptorSet) -> None:
    del file_of(files, "tensor").enum_type[0].value[3]


def renumber_enum_value(files: FileDescriptorSet) -> None:
    file_of(files, "tensor").enum_type[0].value[3].number = 77


def remove_method(files: FileDescriptorSet) -> None:
    del file_of(files, "features").service[0].method[1]


def change_answer(files: FileDescriptorSet) -> None:
    file_of(files, "features").service[0].method[1].output_type = ".headrace.v1.GetFeaturesResponse"


def make_streaming(files: FileDescriptorSet) -> None:
    file_of(files, "prediction").service[0].method[0].server_streaming = True


def remove_service(files: FileDescriptorSet) -> None:
    del file_of(files, "prediction").service[:]


def remove_file(files: FileDescriptorSet) -> None:
    files.file.remove(file_of(files, "features"))


@pytest.mark.parametrize(
    ("mutate", "named"),
    [
        (remove_field, "field headrace.v1.Tensor.shape is gone"),
        (rename_field, "field headrace.v1.Tensor.shape is gone"),
        (renumber_field, "field headrace.v1.Tensor.shape was '3: repeated int64' and is '99: repeated int64'"),
        (retype_field, "field headrace.v1.Tensor.shape was '3: repeated int64' and is '3: repeated int32'"),
        (retype_message_field, "field headrace.v1.EntityColumn.strings"),
        (unrepeat_field, "field headrace.v1.Tensor.shape"),
        (lose_presence, "field headrace.v1.Tensor.raw"),
        (retype_map_value, "field headrace.v1.PredictRequest.ParametersEntry.value"),
        (remove_message, "message headrace.v1.Int64Ids is gone"),
        (move_message, "message headrace.v1.Int64Ids was 'in headrace/v1/tensor.proto'"),
        (remove_enum_value, "value headrace.v1.DType.DTYPE_INT16 is gone"),
        (renumber_enum_value, "value headrace.v1.DType.DTYPE_INT16 was '3' and is '77'"),
        (remove_method, "method headrace.v1.FeatureService.Write is gone"),
        (change_answer, "method headrace.v1.FeatureService.Write"),
        (make_streaming, "method headrace.v1.PredictionService.Predict"),
        (remove_service, "service headrace.v1.PredictionService is gone"),
        (remove_file, "service headrace.v1.FeatureService is gone"),
    ],
)
def test_a_breaking_change_is_named(mutate: Callable[[FileDescriptorSet], None], named: str) -> None:
    changed = released()
    mutate(changed)
    assert any(problem.startswith(named) for problem in breaking_changes(released(), changed))


def add_field(files: FileDescriptorSet) -> None:
    message_of(files, "tensor", "Tensor").field.add(name="layout", number=16, type=FieldDescriptorProto.TYPE_STRING)


def add_message(files: FileDescriptorSet) -> None:
    file_of(files, "tensor").message_type.add(name="Explanation")


def add_enum_value(files: FileDescriptorSet) -> None:
    file_of(files, "tensor").enum_type[0].value.add(name="DTYPE_BFLOAT16", number=14)


def add_method(files: FileDescriptorSet) -> None:
    file_of(files, "prediction").service[0].method.add(name="Explain")


def reorder(files: FileDescriptorSet) -> None:
    file_of(files, "tensor").message_type.reverse()


@pytest.mark.parametrize("mutate", [add_field, add_message, add_enum_value, add_method, reorder])
def test_additions_and_order_are_free(mutate: Callable[[FileDescriptorSet], None]) -> None:
    changed = released()
    mutate(changed)
    assert breaking_changes(released(), changed) == []

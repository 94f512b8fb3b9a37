from headrace.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "label", "entities", "context", "overrides", "request_id", "outputs", "return_features", "parameters", "return_violations", "priority", "variant")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Parameter
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Parameter, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    RETURN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RETURN_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    label: str
    entities: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.EntityColumn]
    context: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    overrides: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    request_id: str
    outputs: _containers.RepeatedScalarFieldContainer[str]
    return_features: bool
    parameters: _containers.MessageMap[str, _tensor_pb2.Parameter]
    return_violations: bool
    priority: int
    variant: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[_tensor_pb2.EntityColumn, _Mapping]]] = ..., context: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., overrides: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., request_id: _Optional[str] = ..., outputs: _Optional[_Iterable[str]] = ..., return_features: bool = ..., parameters: _Optional[_Mapping[str, _tensor_pb2.Parameter]] = ..., return_violations: bool = ..., priority: _Optional[int] = ..., variant: _Optional[str] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model", "version", "variant", "outputs", "views", "features", "warnings", "parameters", "request_id", "prediction_id", "verdicts", "violations")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Parameter
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Parameter, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    variant: str
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    views: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ViewRows]
    features: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    parameters: _containers.MessageMap[str, _tensor_pb2.Parameter]
    request_id: str
    prediction_id: bytes
    verdicts: bytes
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., variant: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., views: _Optional[_Iterable[_Union[_tensor_pb2.ViewRows, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., parameters: _Optional[_Mapping[str, _tensor_pb2.Parameter]] = ..., request_id: _Optional[str] = ..., prediction_id: _Optional[bytes] = ..., verdicts: _Optional[bytes] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("row", "column", "kinds", "raw")
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    row: int
    column: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    raw: _tensor_pb2.Tensor
    def __init__(self, row: _Optional[int] = ..., column: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., raw: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

from headrace.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureColumn(_message.Message):
    __slots__ = ("values", "valid")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    values: _tensor_pb2.Tensor
    valid: bytes
    def __init__(self, values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., valid: _Optional[bytes] = ...) -> None: ...

class GetFeaturesRequest(_message.Message):
    __slots__ = ("view", "entities", "columns")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    view: str
    entities: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.EntityColumn]
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, view: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[_tensor_pb2.EntityColumn, _Mapping]]] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class GetFeaturesResponse(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: _tensor_pb2.ViewRows
    columns: _containers.RepeatedCompositeFieldContainer[FeatureColumn]
    def __init__(self, rows: _Optional[_Union[_tensor_pb2.ViewRows, _Mapping]] = ..., columns: _Optional[_Iterable[_Union[FeatureColumn, _Mapping]]] = ...) -> None: ...

class WriteFeaturesRequest(_message.Message):
    __slots__ = ("view", "entities", "columns", "event_time_ms", "force")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    view: str
    entities: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.EntityColumn]
    columns: _containers.RepeatedCompositeFieldContainer[FeatureColumn]
    event_time_ms: _containers.RepeatedScalarFieldContainer[int]
    force: bool
    def __init__(self, view: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[_tensor_pb2.EntityColumn, _Mapping]]] = ..., columns: _Optional[_Iterable[_Union[FeatureColumn, _Mapping]]] = ..., event_time_ms: _Optional[_Iterable[int]] = ..., force: bool = ...) -> None: ...

class WriteFeaturesResponse(_message.Message):
    __slots__ = ("written", "superseded")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    written: int
    superseded: int
    def __init__(self, written: _Optional[int] = ..., superseded: _Optional[int] = ...) -> None: ...

class DeleteFeaturesRequest(_message.Message):
    __slots__ = ("view", "entities")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    view: str
    entities: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.EntityColumn]
    def __init__(self, view: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[_tensor_pb2.EntityColumn, _Mapping]]] = ...) -> None: ...

class DeleteFeaturesResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

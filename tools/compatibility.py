"""Is today's API still what released clients speak?

`proto/released.binpb` is a FileDescriptorSet of the last released API. `make check` and a contract test compare it with
the descriptors of headrace/: whatever was released must still be there, under its name and number, with its type.
The Open Inference Protocol (headrace/inference) is not ours to promise and left out.
Additions are free. After adding something on purpose, `make release-api` makes it part of what is promised.

Descriptors are flattened into facts, a name and what is said about it; a change breaks clients exactly when a fact of
the release is gone or says something else.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

import headrace

STANDARD = "headrace.inference."
RELEASED = Path(__file__).resolve().parent.parent / "proto" / "released.binpb"

Fact: TypeAlias = tuple[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="make today's API the released one, unless it breaks it")
    release = parser.parse_args().release
    today = current()
    first = release and not RELEASED.exists()
    problems = [] if first else breaking_changes(released(), today)
    for problem in problems:
        print(problem, file=sys.stderr)
    if release and not problems:
        RELEASED.write_bytes(today.SerializeToString(deterministic=True))
    return 1 if problems else 0


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def current() -> FileDescriptorSet:
    """The descriptors inside the generated modules, in the order of their names."""
    files = FileDescriptorSet()
    for module in sorted(found.name for found in pkgutil.walk_packages(headrace.__path__, "headrace.")):
        if module.endswith("_pb2") and not module.startswith(STANDARD):
            importlib.import_module(module).DESCRIPTOR.CopyToProto(files.file.add())
    return files


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """One sentence for everything in `old` that a client of `old` would not find in `new`."""
    now = dict(facts(new))
    return [
        f"{name} was {said!r} and is {now[name]!r}" if name in now else f"{name} is gone (it was {said!r})"
        for name, said in facts(old)
        if now.get(name) != said
    ]


def facts(files: FileDescriptorSet) -> Iterator[Fact]:
    for file in files.file:
        # Generated code is imported by the file's name, so a message that moves breaks those who import it.
        for message in file.message_type:
            yield f"message {file.package}.{message.name}", f"in {file.name}"
            yield from message_facts(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            yield f"enum {file.package}.{enum.name}", f"in {file.name}"
            yield from enum_facts(f"{file.package}.{enum.name}", enum)
        for service in file.service:
            yield f"service {file.package}.{service.name}", f"in {file.name}"
            yield from service_facts(file, service)


def message_facts(path: str, message: DescriptorProto) -> Iterator[Fact]:
    for field in message.field:
        yield f"field {path}.{field.name}", field_shape(message, field)
    for nested in message.nested_type:
        yield f"message {path}.{nested.name}", "nested"
        yield from message_facts(f"{path}.{nested.name}", nested)
    for enum in message.enum_type:
        yield f"enum {path}.{enum.name}", "nested"
        yield from enum_facts(f"{path}.{enum.name}", enum)


def field_shape(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Number, label, type and oneof: what is on the wire, and what decides whether presence is known."""
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    oneof = f" in oneof {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else ""
    return f"{field.number}: {label} {kind}{oneof}"


def enum_facts(path: str, enum: EnumDescriptorProto) -> Iterator[Fact]:
    for value in enum.value:
        yield f"value {path}.{value.name}", str(value.number)


def service_facts(file: FileDescriptorProto, service: ServiceDescriptorProto) -> Iterator[Fact]:
    for method in service.method:
        takes = f"{'stream ' if method.client_streaming else ''}{method.input_type}"
        gives = f"{'stream ' if method.server_streaming else ''}{method.output_type}"
        yield f"method {file.package}.{service.name}.{method.name}", f"{takes} -> {gives}"


if __name__ == "__main__":
    sys.exit(main())

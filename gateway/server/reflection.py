"""Server reflection, for tools such as grpcurl and ghz that have no .proto at hand."""

from collections.abc import Iterable
from typing import cast

import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from gateway.transport.call import Transport


class _MethodsToo:
    """The default pool, which also finds the file of a method: ghz asks for `package.Service.Method`."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # the pool's own name
        """The file that defines a symbol; a method is in the file of its service."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindFileContainingSymbol(symbol.rpartition(".")[0])

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)


def add_reflection(services: Iterable[str], server: Transport) -> None:
    """Serve `grpc.reflection.v1alpha` for these services."""
    servicer = reflection.aio.ReflectionServicer(
        (*services, reflection.SERVICE_NAME), pool=cast("descriptor_pool.DescriptorPool", _MethodsToo())
    )
    add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, cast("grpc.aio.Server", server))  # type: ignore[no-untyped-call]  # its stubs leave it out

"""What a grpcio client once sent, byte for byte. An upgrade of ngh2 that reads it otherwise fails here.

The recording has one line of hexadecimal for each piece that the socket gave.
"""

from pathlib import Path

from gateway.transport import TransportOptions
from gateway.transport.fast.admission import Admission
from gateway.transport.fast.deadlines import Deadlines
from gateway.transport.fast.protocol import Call, Route, ServerConnection, UnaryCall
from tests.contract.transport.rig import METHOD

RECORDED = Path(__file__).parent / "recorded_grpcio_1_85.hex"


def test_a_recorded_client_is_understood() -> None:
    admission = Admission(100)
    deadlines: Deadlines[Call] = Deadlines()
    routes = {METHOD.encode(): Route(METHOD, lambda calls: None)}
    server = ServerConnection(
        TransportOptions(), routes, lambda path, headers: None, admission, deadlines, lambda: None, 0.0
    )
    server.output(0.0, 2**20)
    calls: list[UnaryCall] = []
    for line in RECORDED.read_text().split():
        for call in server.receive(bytes.fromhex(line), 1.0):
            assert isinstance(call, UnaryCall)
            if call.compressed:
                call.inflate()
            calls.append(call)
            call.reply(bytes(call.payload))
        server.output(1.0, 2**20)
    payloads = [b"plain", b"with metadata", b"zip me " * 40, b"L" * 20_000, b""]
    assert [bytes(call.payload) for call in calls] == payloads
    custom = [pair for pair in calls[1].metadata if pair[0] != "user-agent"]
    assert custom == [("tenant", "a b"), ("blob-bin", b"\x00\xff")]
    assert 5.5 < calls[1].deadline <= 6.0
    assert dict(calls[0].metadata).keys() == {"user-agent"}
    assert (admission.active, len(deadlines)) == (0, 0)

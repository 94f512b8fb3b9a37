"""The contract suite runs on uvloop, as the server does, and on both transports."""

import pytest
import uvloop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["fast", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which transport."""
    return str(request.param)

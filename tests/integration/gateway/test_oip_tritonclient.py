"""tritonclient, as its users have it, against a gateway on both transports."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.oipsite import running_models

REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = REPOSITORY / ".venv-oip" / "bin" / "python"
CLIENT = Path(__file__).with_name("oip_client.py")
TOKEN = "a token of the tests"
CHECKS = re.findall(r"^(?:async )?def (a?check_\w+)", CLIENT.read_text(), re.MULTILINE)
TIMEOUT_S = 120


@pytest.fixture(scope="module", params=["fast", "grpcio"])
def results(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What each check of the client said."""
    if not PYTHON.exists():
        pytest.fail("the client's own Python is missing: make .venv-oip/.installed")
    folder = tmp_path_factory.mktemp("oip")
    (folder / "local").mkdir()
    (folder / "remote").mkdir()
    remote = {"transport": request.param, "grpc": {"listen": ["0.0.0.0:0"]}, "admin_token": TOKEN}
    with (
        running_models(folder / "local", redis_server.url, {"transport": request.param}) as local,
        running_models(folder / "remote", redis_server.url, remote | {"expose_features": "always"}) as other,
    ):
        port = other.target.rpartition(":")[2]
        command = [str(PYTHON), str(CLIENT), local.target, f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_tritonclient_is_served(results: dict[str, str], check: str) -> None:
    assert not results[check], results[check]


def test_every_check_ran(results: dict[str, str]) -> None:
    assert list(results) == CHECKS

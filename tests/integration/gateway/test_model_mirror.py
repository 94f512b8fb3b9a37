"""Models from an object store: a real S3 server (moto), and files."""

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gateway.inference.mirror import STATE_FILE, Mirror, MirrorError
from tests.models import Rig, add_scaled

BUCKET = "models-of-tests"


class Bucket:
    """A bucket of a server of its own."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        )
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"prod/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"prod/{key}")

    def mirror(self, folder: Path) -> Mirror:
        options = {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": "a",
            "secret_access_key": "b",
            "virtual_hosted_style_request": "false",
        }
        return Mirror(f"s3://{BUCKET}/prod", folder, options)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # all servers of a process share their buckets
        yield Bucket(f"http://{host}:{port}")
    finally:
        server.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def graph(tmp_path: Path, factor: float) -> bytes:
    return add_scaled(tmp_path / "graphs", "m", 1, factor).read_bytes()


@pytest.mark.filterwarnings("ignore")  # of moto's and boto's own
async def test_models_of_a_bucket_are_served_and_followed(bucket: Bucket, root: Path, tmp_path: Path) -> None:
    bucket.put("one/1/model.onnx", graph(tmp_path, 2))
    mirror = bucket.mirror(root)
    assert mirror.copy().fetched == ("one/1/model.onnx",)
    rig = Rig(root)
    rig.models.fetch = mirror.copy
    bucket.put("one/2/model.onnx", graph(tmp_path, 3))
    await rig.models.load("one")
    assert (rig.serving(), rig.factor("one")) == ([("one", 2)], 3)
    bucket.put("one/2/model.onnx", graph(tmp_path, 4))
    await rig.models.refresh()
    assert rig.factor("one") == 4
    bucket.delete("one/2/model.onnx")
    await rig.models.refresh()
    assert rig.serving() == [("one", 1)]
    assert not (root / "one/2").exists()
    bucket.delete("one/1/model.onnx")
    (problem,) = await rig.models.refresh()
    assert "nothing is removed" in str(problem)
    assert rig.factor("one") == 2


@pytest.mark.filterwarnings("ignore")
def test_a_file_is_fetched_once_unless_it_is_harmed(bucket: Bucket, root: Path, tmp_path: Path) -> None:
    data = graph(tmp_path, 2)
    bucket.put("one/1/model.onnx", data)
    bucket.put("one/model.yaml", b"name: one\n")
    assert len(bucket.mirror(root).copy().fetched) == 2
    again = bucket.mirror(root)
    assert again.copy().fetched == ()
    path = root / "one/1/model.onnx"
    path.write_bytes(data[:-1] + b"x")  # the same size
    assert bucket.mirror(root).copy().fetched == ("one/1/model.onnx",)
    assert path.read_bytes() == data
    path.write_bytes(data[:50])
    assert again.copy().fetched == ("one/1/model.onnx",)
    (root / STATE_FILE).write_text("{")
    assert len(bucket.mirror(root).copy().fetched) == 2
    state = json.loads((root / STATE_FILE).read_text())
    assert len(state["files"]["one/1/model.onnx"]["sha256"]) == 64


@pytest.mark.filterwarnings("ignore")
def test_a_link_in_the_folder_is_replaced_and_not_followed(bucket: Bucket, root: Path, tmp_path: Path) -> None:
    data = graph(tmp_path, 2)
    bucket.put("one/1/model.onnx", data)
    bucket.mirror(root).copy()
    path, outside = root / "one/1/model.onnx", tmp_path / "outside"
    outside.write_bytes(data)
    path.unlink()
    path.symlink_to(outside)
    assert bucket.mirror(root).copy().fetched == ("one/1/model.onnx",)
    assert not path.is_symlink()


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_gone(bucket: Bucket, root: Path, tmp_path: Path) -> None:
    bucket.put("one/1/model.onnx", graph(tmp_path, 2))
    bucket.mirror(root).copy()
    bucket.endpoint = "http://127.0.0.1:1"
    with pytest.raises(MirrorError, match="cannot be listed"):
        bucket.mirror(root).copy()
    assert (root / "one/1/model.onnx").exists()


def test_names_that_lead_elsewhere_are_refused(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    add_scaled(store, "one", 1, 2)
    for name in (".hidden", "one/.git", "one/a\\b"):
        (store / name).mkdir(parents=True)
        (store / name / "file").write_text("x")
    done = Mirror(store.as_uri(), root, {}).copy()
    assert done.fetched == ("one/1/model.onnx",)
    assert len(done.refused) == 3
    assert sorted(path.name for path in root.iterdir()) == [".headrace-incoming", STATE_FILE, "one"]


@pytest.mark.filterwarnings("ignore")  # of moto's and boto's own
def test_keys_that_no_folder_can_have_harm_no_other(bucket: Bucket, root: Path, tmp_path: Path) -> None:
    """A key may be the folder of another one, and longer than a file's name. Two models are the same bytes here."""
    for key in ("one/1/model.onnx", "two/1/model.onnx", "two", f"long/1/{'n' * 300}"):
        bucket.put(key, graph(tmp_path, 2))
    done = bucket.mirror(root).copy()
    assert sorted(done.fetched) == ["one/1/model.onnx", "two/1/model.onnx"]
    assert ["name of a file and of a folder" in refused for refused in done.refused].count(True) == 1
    assert len(done.refused) == 2


def test_a_folder_that_cannot_be_written_is_a_message(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    add_scaled(store, "one", 1, 2)
    (root / "one").write_text("in the way")
    with pytest.raises(MirrorError, match="cannot be copied to"):
        Mirror(store.as_uri(), root, {}).copy()


def test_an_object_that_is_shorter_than_it_says_never_gets_a_name(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    path = add_scaled(store, "one", 1, 2)
    mirror = Mirror(store.as_uri(), root, {})
    objects, _ = mirror._list()
    os.truncate(path, 20)
    with pytest.raises(MirrorError, match="tried again"):
        mirror._fetch("one/1/model.onnx", objects["one/1/model.onnx"])
    assert not (root / "one").exists()


def test_an_address_that_is_none(root: Path) -> None:
    with pytest.raises(MirrorError, match="cannot be opened"):
        Mirror("gopher://x/y", root, {})

"""Generates the protobuf code of headrace/, loadtest/ and featureclient/, or checks it against the .proto files.

`make stubs` writes and `make check` compares; both run this file in `.venv-stubs`, with the oldest supported
grpcio-tools, because generated code refuses runtimes that are older than its generator.

Every .proto file becomes `*_pb2.py` and `*_pb2.pyi`, and one that defines a service `*_pb2_grpc.py` too. Files that
nothing generates any more are removed. The same input and the same generator give the same bytes.
"""

import argparse
import difflib
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("headrace", "loadtest", "featureclient")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when generated code differs")
    check = parser.parse_args().check
    wanted = generate()
    found = {str(path.relative_to(REPOSITORY)): path.read_text() for path in committed()}
    if check:
        return report(found, wanted)
    for name in found.keys() - wanted.keys():
        (REPOSITORY / name).unlink()
    for name, text in wanted.items():
        path = REPOSITORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if found.get(name) != text:
            path.write_text(text)
            print(f"wrote {name}")
    return 0


def committed() -> list[Path]:
    """The generated files of the working tree; `__init__.py` and `py.typed` are written by hand."""
    found = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*_pb2*")]
    return [path for path in found if path.suffix in {".py", ".pyi"}]


def generate() -> dict[str, str]:
    """Path from the repository's root -> text of every generated file."""
    api = REPOSITORY / "proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_protoc(api, sorted((api / "headrace").rglob("*.proto")), out)
        # The standard's files are in a folder of their own; their code is in headrace/ with the rest.
        standard = api / "inference"
        run_protoc(standard, sorted(standard.rglob("*.proto")), out, below="headrace/inference")
        for package in ("loadtest", "featureclient"):
            run_protoc(REPOSITORY, sorted((REPOSITORY / package).rglob("*.proto")), out)
        return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("*_pb2*"))}


def run_protoc(root: Path, sources: list[Path], out: Path, *, below: str = "") -> None:
    """Generate the code of `sources`, whose names on the wire are their paths below `root`, after `below`."""
    descriptors = out / "descriptors"
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={below}={root}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            f"--descriptor_set_out={descriptors}",
            *map(str, sources),
        ]
    )
    if code:
        raise SystemExit("protoc failed; its message is above")
    for file in FileDescriptorSet.FromString(descriptors.read_bytes()).file:
        if not file.service:
            (out / file.name.replace(".proto", "_pb2_grpc.py")).unlink()


def report(found: dict[str, str], wanted: dict[str, str]) -> int:
    """Print how the working tree differs from what protoc generates; 1 if it does."""
    differing = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    for name in differing:
        old, new = found.get(name, "").splitlines(), wanted.get(name, "").splitlines()
        diff = list(difflib.unified_diff(old, new, f"{name} (committed)", f"{name} (generated)", lineterm="", n=1))
        print("\n".join(line[:200] for line in diff[:20]))
    if differing:
        print(f"{', '.join(differing)}: not what the .proto files generate. Run `make stubs`.", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

"""The commands on the way back to training need an extra, and say which; the CLI itself needs none of it."""

import subprocess
import sys

_WITHOUT = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
from click.testing import CliRunner
from gateway.server.cli import main

assert not {"pyarrow", "duckdb"} & set(sys.modules)
words = ["--config", __file__, "--model", "m"]
for command in ("audit skew", "dataset build --labels l -o o", "dataset feast-log -o o"):
    result = CliRunner().invoke(main, [*command.split(), *words])
    assert result.exit_code == 1, result.output
    assert f"{MISSING} is not installed: pip install 'headrace[journal]'" in result.output, result.output
print("said")
"""


def test_a_missing_extra_is_named() -> None:
    for missing in ("duckdb", "pyarrow"):
        code = f"MISSING = {missing!r}\n__file__ = {__file__!r}\n{_WITHOUT}"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert ran.stdout.strip() == "said", ran.stderr

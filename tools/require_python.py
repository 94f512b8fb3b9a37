"""Says what is missing before a virtual environment fails with less helpful words. Runs on any Python 3.6 or newer."""

import importlib.util
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older Python is told so
    version = sys.version.split()[0]
    sys.exit(f"Headrace needs Python 3.11 or newer, and this is {version}. Try `make PYTHON=python3.12 ...`.")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit(f"{sys.executable} cannot make virtual environments. On Debian: apt-get install python3-venv")

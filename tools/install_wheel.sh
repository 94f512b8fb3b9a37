#!/bin/sh
# install_wheel.sh SOURCE TARGET: builds the wheel of SOURCE and installs it into a new virtual environment at TARGET,
# with the extra `journal`: Arrow, so that `headrace load` reads files, DuckDB, which the example computes rows with, and
# what the journal and live drift need, so that they are a matter of settings.
# The Dockerfile runs this, and tools/image_steps.sh runs it where there is no Docker.
set -eu
source=$1
target=$2
python=${PYTHON:-python3}

"$python" -m venv "$target"
pip() {
    "$target/bin/python" -m pip --disable-pip-version-check --no-cache-dir --quiet "$@"
}
pip wheel --no-deps --wheel-dir "$target/wheel" "$source"
pip install "$(echo "$target"/wheel/headrace-*.whl)[journal]"

# Every target sets up what it needs in .venv by itself, and again only when pyproject.toml changes.
#
#   make demo        predictions for real flights          ARGS='--once --json' ends after one round
#   make test        the suite, with what wheels and one redis binary give     ARGS='-k cache'
#   make test-all    all of it: Prometheus, slow ones, and once more with asyncio's debug mode
#   make check       format, lint, types, import contracts, generated code, API compatibility; `make -k` goes on
#   make bench       side by side with a hand-written server                   ARGS='--json --quick'
#   make format      write the format that `make check` wants
#   make stubs       generate the protobuf code of headrace/, loadtest/ and featureclient/
#   make release-api promise today's API: write proto/released.binpb
#   make settings-reference   write docs/configuration.md
#   make train       train the example's model again
#   make image-steps run the steps of the Dockerfile in a clean folder

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
PIP := -m pip --disable-pip-version-check --quiet install
DEMO := .venv/.installed-demo
DEV := .venv/.installed-dev
BENCH := .venv/.installed-bench
STUBS := .venv-stubs/.installed
# The oldest grpcio that pyproject.toml allows; its generated code runs on every newer one.
GRPC_TOOLS := grpcio-tools==1.72.1
# The client of the Open Inference Protocol that users have. Its descriptors and ours cannot be in one process.
OIP := .venv-oip/.installed
TRITON_CLIENT := tritonclient[grpc]==2.73.0
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-all check check-format check-lint check-types check-imports check-stubs check-api check-settings bench format \
	stubs release-api settings-reference train image-steps clean
.DELETE_ON_ERROR:

demo: $(DEMO)
	@$(BIN)/headrace demo $(ARGS)

test: $(DEV) $(OIP)
	@$(PYTEST) -m "not slow and not needs_prometheus and not needs_postgres and not needs_kafka" $(ARGS)

test-all: $(DEV) $(OIP)
	@$(PYTEST) $(ARGS)
	@echo "Once more with PYTHONASYNCIODEBUG=1, but for shadows: they shed load where the debug mode makes the loop slow"
	@PYTHONASYNCIODEBUG=1 $(PYTEST) -m "not slow" -k "not shadow" $(wildcard tests/integration tests/adversity tests/contract)

check: check-format check-lint check-types check-imports check-stubs check-api check-settings

check-format: $(DEV)
	@$(BIN)/ruff format --check

check-lint: $(DEV)
	@$(BIN)/ruff check

check-types: $(DEV)
	@$(BIN)/mypy

check-imports: $(DEV)
	@$(BIN)/lint-imports --no-logo

check-stubs: $(STUBS)
	@.venv-stubs/bin/python tools/stubs.py --check

check-api: $(DEV)
	@$(BIN)/python -m tools.compatibility

check-settings: $(DEV)
	@$(BIN)/python -m tools.settings_reference --check

bench: $(BENCH)
	@$(BIN)/python -m loadtest.bench $(ARGS)

format: $(DEV)
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

stubs: $(STUBS)
	@.venv-stubs/bin/python tools/stubs.py

release-api: $(DEV)
	@$(BIN)/python -m tools.compatibility --release

settings-reference: $(DEV)
	@$(BIN)/python -m tools.settings_reference

train: $(DEV)
	@$(BIN)/python -m examples.flights.train $(ARGS)

image-steps:
	@PYTHON=$(PYTHON) tools/image_steps.sh

clean:
	rm -rf .venv .venv-stubs .venv-oip

# The demo needs less than the tests, and a visitor waits less for it.
$(DEMO): pyproject.toml | .venv/bin/python
	@echo "Installing what the demo needs into .venv (once, a minute or so)"
	@$(BIN)/python $(PIP) -e '.[demo]'
	@touch $@

$(DEV): pyproject.toml | .venv/bin/python
	@echo "Installing what tests and checks need into .venv (once, a minute or two)"
	@$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@ $(DEMO)

$(BENCH): pyproject.toml | .venv/bin/python
	@echo "Installing what the benchmarks need into .venv (once, a minute or so)"
	@$(BIN)/python $(PIP) -e '.[bench]'
	@touch $@

$(STUBS): Makefile
	@$(PYTHON) tools/require_python.py
	@$(PYTHON) -m venv .venv-stubs
	@.venv-stubs/bin/python $(PIP) '$(GRPC_TOOLS)'
	@touch $@

$(OIP): Makefile
	@$(PYTHON) tools/require_python.py
	@$(PYTHON) -m venv .venv-oip
	@.venv-oip/bin/python $(PIP) '$(TRITON_CLIENT)'
	@touch $@

.venv/bin/python:
	@$(PYTHON) tools/require_python.py
	@$(PYTHON) -m venv .venv

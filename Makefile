# Everything runs in .venv, which the first target that needs it makes. On a fresh Debian 12: `make demo`, `make test`.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# OpenMP threads that wait in a loop hold the cores that others need
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test bench bench-models lint format setup vulkan clean help

help:
	@echo "make demo    train, quantize, compile and prove a small upscaler on real photographs (demo-output/report.html)"
	@echo "make test    the tests"
	@echo "make bench   seconds and memory for MobileNetV2, beside ExecuTorch (makes a second environment of 1.5 GB)"
	@echo "make bench-models  operators, accuracy and compile time of twelve models, beside ExecuTorch (hours; its results are kept)"
	@echo "make lint    ruff and mypy;  make format: ruff format"
	@echo "make clean   remove .venv, caches and demo-output"

demo: setup vulkan
	$(BIN)/tosaic demo --output demo-output

# two workers on two cores: more threads than cores only wait for one another
test: setup vulkan
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests

# measured as users run it: threads that sleep between loops would slow float PyTorch down
bench: setup
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/bench.py

bench-models: setup
	$(BIN)/python benchmarks/models.py --markdown .cache/benchmark/models.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/install.sh
	PYTHON="$(PYTHON)" scripts/install.sh $(VENV)
	@touch $@

vulkan:
	@scripts/vulkan_driver.sh

clean:
	rm -rf $(VENV) demo-output build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

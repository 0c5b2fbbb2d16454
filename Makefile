# `make demo` and `make test` do everything on a machine that has Python >= 3.11 and make; `make help` lists the rest.
PYTHON ?= python3
UV := .uv/bin/uv
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lock audit wheel clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "make %-8s %s\n", $$1, $$2}'

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python")'
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

.venv/ready: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $$($(PYTHON) -c 'import sys; print(sys.executable)') .venv
	$(UV) pip sync --quiet --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $@

demo: .venv/ready  ## train Reg2RG on the built-in phantom: table, predictions, gallery (under 10 minutes on 2 cores)
	$(BIN)/python -m zoo.fit --method reg2rg

test: .venv/ready  ## everything that CI runs: ruff, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

lock: $(UV)  ## renew requirements.lock from pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

audit: .venv/ready | $(UV)  ## ask pypi.org for known weaknesses of what requirements.lock lists
	$(BIN)/python -m zoo.pins requirements.lock
	.uv/bin/uvx --quiet --python $(BIN)/python pip-audit@2.10.1 --strict --disable-pip --require-hashes --requirement requirements.lock

wheel: .venv/ready  ## build the wheel into dist/
	$(UV) build --quiet --wheel --out-dir dist

clean:  ## remove what the commands above made, but not runs/ and data/
	rm -rf .venv .uv dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache

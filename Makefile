# make demo, make test: from a fresh clone, all they need is Python 3.11 and PyPI.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check format generate bench clean

demo: $(STAMP)
	$(BIN)/extproc demo

test: $(STAMP)
	$(BIN)/pytest -q -n 3 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py
	$(BIN)/python -m extproc.config.reference --check docs/configuration.md docs/extproc.schema.json
	$(BIN)/python -m extproc.wire.generate --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(STAMP)
	$(BIN)/python -m extproc.config.reference docs/configuration.md docs/extproc.schema.json
	$(BIN)/python -m extproc.wire.generate

bench: $(STAMP)
	$(BIN)/python -m bench

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "extproc needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'aliyun-log-python-sdk>=0.9,<1'
	# xds-protos brings an older copy of its modules, which may have been installed over them.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall opentelemetry-proto
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis run

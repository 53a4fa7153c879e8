# make run    what Meles does, on real data, in a minute; RUN_DIR=... keeps the database there
# make test   the tests
# Everything else is below. Needs python3 >= 3.11 with venv and pip; the rest is set up here.

PYTHON ?= python3
VENV ?= .venv
PIP ?= $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
CODECS := snappy,lz4,zstd

.PHONY: run test test-long campaign planted check types bench bench-space clean distclean

run: $(VENV)/.stamp-run
	$(PY) benchmarks/main_job.py $(ARGS)

test: $(VENV)/.stamp-test
	$(PY) -m pytest -n $(JOBS) -m "not long" $(ARGS)

test-long: $(VENV)/.stamp-test
	$(PY) -m pytest -n $(JOBS) -m long --timeout 1800 $(ARGS)

# Every fault at its full count, with a table of what was injected and reached; hours. KILLS=100 for a taste.
KILLS ?= 1000
campaign: $(VENV)/.stamp-test
	MELES_TEST_PROFILE=long MELES_KILLS=$(KILLS) $(PY) -m pytest -n $(JOBS) --timeout 3000 \
		tests/faults tests/process tests/isolation tests/model tests/security $(ARGS)

# Plants known bugs in a copy of the tree, one at a time, and expects a test to fail for each.
planted: $(VENV)/.stamp-test
	$(PY) tests/planted.py $(ARGS)

check: $(VENV)/.stamp-dev types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q tests/structure

# The repository root is the package, so the checker needs a folder that holds it under its name.
types: $(VENV)/.stamp-dev .mypy_pkg/meles
	cd .mypy_pkg && $(abspath $(PY)) -m mypy --config-file ../pyproject.toml \
		-m meles -m meles.supervisor -p meles.configs -p meles.engine -p meles.workers

bench: $(VENV)/.stamp-bench
	$(PY) benchmarks/compare.py $(ARGS)

bench-space: $(VENV)/.stamp-bench
	$(PY) benchmarks/space.py $(ARGS)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Meles needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-run: pyproject.toml | $(PY)
	$(PIP) install -e .
	touch $@

$(VENV)/.stamp-test: pyproject.toml | $(PY)
	$(PIP) install -e '.[test,$(CODECS)]'
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-dev: pyproject.toml | $(PY)
	$(PIP) install -e '.[test,dev,$(CODECS)]'
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-run

$(VENV)/.stamp-bench: pyproject.toml | $(PY)
	$(PIP) install -e '.[bench,$(CODECS)]'
	touch $@ $(VENV)/.stamp-run

.mypy_pkg/meles:
	mkdir -p .mypy_pkg
	ln -sfn .. $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .mypy_pkg
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# make run    what Meles does, on real data, in a minute; RUN_DIR=... keeps the database there
# make test   the tests, on the compiled kernel and on plain Python
# Everything else is below. Needs python3 >= 3.11 with venv and pip; the rest is set up here.

PYTHON ?= python3
VENV ?= .venv
PIP ?= $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
# one more than the processors most machines give: tests wait for processes and disks a good deal
JOBS ?= 3
ARGS ?=

PY := $(VENV)/bin/python
CODECS := snappy,lz4,zstd
KERNEL_SOURCES := $(wildcard engine/kernel/*.pyx engine/kernel/*.pxi engine/kernel/*.h)
# removed before it is built anew: a build that fails must not leave an old one behind
KERNEL_BUILT := engine/kernel/_native.*.so
KERNEL := $(PY) -P -c 'import meles.engine.kernel as k; exit(k.choose({}) is None)'
ASAN := .asan
ASAN_TESTS := tests/contract tests/api/test_kept_values.py $(addprefix tests/engine/,kernel table memtable iterators txn vlog)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g

.PHONY: run test test-native test-python test-long test-asan campaign fuzz planted check types bench bench-space clean distclean

run: $(VENV)/.stamp-run
	$(PY) benchmarks/main_job.py $(ARGS)

# The whole suite on both kernels; where nothing compiles, on the one there is.
test:
	@$(MAKE) --no-print-directory test-native
	@$(MAKE) --no-print-directory test-python

test-native: $(VENV)/.stamp-test
	@if $(KERNEL); then \
		echo 'tests on the compiled kernel'; \
		MELES_KERNEL=native $(PY) -m pytest -n $(JOBS) -m "not long" $(ARGS); \
	else echo 'NOT RUN: the tests on the compiled kernel. It was not built: no C compiler?'; fi

test-python: $(VENV)/.stamp-test
	@echo 'tests on the kernel in plain Python'
	@MELES_KERNEL=python $(PY) -m pytest -n $(JOBS) -m "not long" $(ARGS)

test-long: $(VENV)/.stamp-test test-asan
	$(PY) -m pytest -n $(JOBS) -m long --timeout 1800 $(ARGS)

# What touches the compiled kernel, with a build that notices every access outside of a buffer. It
# has a copy of the sources (the pages of the formats are not in it) and a venv of its own: the
# sanitizer has to be there before Python is.
test-asan: $(ASAN)/.stamp
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" PYTHONMALLOC=malloc MELES_KERNEL=native \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(ASAN)/venv/bin/python -m pytest -n $(JOBS) -m "not long" --timeout 600 \
		--ignore-glob '*/test_format.py' $(ASAN_TESTS) $(ARGS)

# Every fault at its full count, with a table of what was injected and reached; hours, in parts that
# can be resumed (`.campaign`), two at a time (JOBS=4: four). campaign-kills, campaign-images, ...:
# one group (tests/campaign.py).
campaign: $(VENV)/.stamp-test
	$(PY) tests/campaign.py $(ARGS)

campaign-%: $(VENV)/.stamp-test
	$(PY) tests/campaign.py $* $(ARGS)

# Coverage-guided fuzzing of the parsers by atheris, which is installed for it. FUZZ_SECONDS=60 each.
fuzz: $(VENV)/.stamp-fuzz
	$(PY) tests/fuzz.py $(ARGS)

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
	$(PY) benchmarks/standard.py $(ARGS)

bench-space: $(VENV)/.stamp-bench
	$(PY) benchmarks/space.py $(ARGS)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Meles needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-run: pyproject.toml $(KERNEL_SOURCES) | $(PY)
	rm -f $(KERNEL_BUILT)
	$(PIP) install -e .
	touch $@

$(VENV)/.stamp-test: pyproject.toml $(KERNEL_SOURCES) | $(PY)
	rm -f $(KERNEL_BUILT)
	$(PIP) install -e '.[test,$(CODECS)]'
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-dev: pyproject.toml $(KERNEL_SOURCES) | $(PY)
	rm -f $(KERNEL_BUILT)
	$(PIP) install -e '.[test,dev,$(CODECS)]'
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-run

$(VENV)/.stamp-fuzz: pyproject.toml $(KERNEL_SOURCES) | $(PY)
	rm -f $(KERNEL_BUILT)
	$(PIP) install -e '.[test,fuzz,$(CODECS)]'
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-run

$(VENV)/.stamp-bench: pyproject.toml $(KERNEL_SOURCES) | $(PY)
	rm -f $(KERNEL_BUILT)
	$(PIP) install -e '.[bench,$(CODECS)]'
	touch $@ $(VENV)/.stamp-run

$(ASAN)/.stamp: pyproject.toml $(KERNEL_SOURCES) \
		$(shell find engine workers configs -name '*.py' -o -name '*.toml') | $(PY)
	rm -rf $(ASAN)
	mkdir -p $(ASAN)/src
	cp -r pyproject.toml README.md __init__.py py.typed supervisor.py engine workers configs $(ASAN)/src
	rm -f $(ASAN)/src/engine/kernel/*.so $(ASAN)/src/engine/kernel/*.c
	$(PY) -m venv $(ASAN)/venv
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(ASAN)/venv/bin/python -m pip \
		--disable-pip-version-check --quiet install '$(ASAN)/src[test,$(CODECS)]'
	touch $@

.mypy_pkg/meles:
	mkdir -p .mypy_pkg
	ln -sfn .. $@

clean:
	rm -rf $(ASAN) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .mypy_pkg
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

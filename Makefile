# Everything a developer or a tester needs. `make help` lists the targets; each does what it needs first.

SHELL := /bin/bash
PY := .venv/bin/python
# A python that can make .venv: the first of these that is 3.11 or newer and really starts.
HOST_PYTHON = $(shell for p in python3 python3.11 python3.12 python3.13 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
DEPS := .venv/.deps-done
EXTENSIONS := build/.extensions-done
EXT_SOURCES := $(wildcard ext/*.pyx ext/*.pxd ext/*.h ext/*.c marsx/_ext/*.pxd) setup.py
PYZ_SOURCES := $(shell find marsx -name '*.py' -o -path '*/share/*' 2>/dev/null) tools/mkpyz.py tools/pyz_main.py tools/pyz_extract.py \
	mars.pyz.spec pyproject.toml
LINTED := setup.py marsx tools tests $(wildcard bench)
# More arguments for pytest: make test ARGS='tests/unit/base -k config'
ARGS ?=
# Most tests wait for something; parts of a file stay together as long as there is work.
PARALLEL ?= -n 3 --dist worksteal
# Seed of simulations, kill rounds and fuzzer: make sim SEED=7
SEED ?= 1
# How long `make fuzz` runs, and how many kill rounds `make test-long` plays.
SECONDS ?= 60
ROUNDS ?= 200

# Where it is set, every start of a program compiles all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help deps build pyz test test-long unit check lint types sim sim-long mutants fuzz bench demo errors man annotate \
	clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

deps: $(DEPS) ## missing system packages (apt, as root only) and .venv with the pinned tools

$(DEPS): requirements-dev.txt tools/deps.py
	@test -n "$(HOST_PYTHON)" || { echo "make: no python 3.11 or newer found" >&2; exit 1; }
	$(HOST_PYTHON) tools/deps.py
	@touch $@

build: $(EXTENSIONS) ## compile ext/*.pyx into marsx/_ext (MARS_BUILD=debug for assertions and symbols)

$(EXTENSIONS): $(EXT_SOURCES) | $(DEPS)
	$(PY) setup.py -q build_ext --inplace
	@mkdir -p build && touch $@

pyz: mars.pyz ## ./mars.pyz, checked and tried on every python found

mars.pyz: $(PYZ_SOURCES) $(EXTENSIONS) | $(DEPS)
	$(PY) tools/mkpyz.py

test: build pyz ## all tests (what needs root or a device that is not there is skipped, with the reason)
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-long: build pyz ## kill rounds (ROUNDS=200 SEED=n), then the other long runs: half an hour and more
	MARS_ROUNDS=$(ROUNDS) MARS_SEED=$(SEED) $(PY) -m pytest -s tests/cluster/test_rounds.py $(ARGS)
	MARS_HANDOVERS=100 MARS_SEED=$(SEED) $(PY) -m pytest -k round_and_round tests/cluster/test_handover.py $(ARGS)
	MARS_STEPS=120 MARS_SEED=$(SEED) $(PY) -m pytest -s tests/cluster/test_chaos.py $(ARGS)
	$(MAKE) mutants sim-long

unit: build ## only the fast tests
	$(PY) -m pytest tests/unit $(ARGS)

check: lint types test ## lint, types, all tests

lint: $(DEPS) ## ruff
	$(PY) -m ruff check $(LINTED)

types: $(DEPS) ## mypy over marsx
	$(PY) -m mypy marsx

sim: build ## crash states of recorded runs (20,000), and whole clusters (2,000): SEED=n; a failure says how to see it again
	$(PY) -m tests.crash.run --jobs 2 --seed $(SEED) --states 20000
	$(PY) -m tests.sim.cluster --seed $(SEED) --count 2000

sim-long: build ## the same, 1,000,000 states and 50,000 clusters
	$(PY) -m tests.crash.run --jobs 2 --seed $(SEED) --states 1000000 --budget 10
	$(PY) -m tests.sim.cluster --seed $(SEED) --count 50000

bench: build pyz ## measure everything into bench/report.json (10 minutes); see bench/README.md
	@mkdir -p build
	$(PY) -m pytest bench --benchmark-only --benchmark-json=build/bench.json --import-mode=importlib -q $(ARGS)
	$(PY) bench/report.py build/bench.json
	$(PY) bench/system.py
	$(PY) bench/plot.py

demo: build pyz ## two hosts on this machine replicate a live file system; every byte is compared
	$(PY) tools/demo.py $(ARGS)

errors: $(DEPS) ## write docs/errors.md
	$(PY) tools/errors_page.py

man: build ## write docs/man, docs/completion, docs/views.md, files of monitor/share from the tables of the programs
	$(PY) tools/manpages.py
	$(PY) -m tools.viewspage
	$(PY) -m tools.monitoring

fuzz: $(DEPS) ## hostile logs, links and frames under the sanitizers (SECONDS=60 SEED=1); tests/fuzz/__init__.py
	MARS_BUILD=asan MARS_EXT=marssum,marslog,marsreplay,marsscan,marsshadow $(PY) setup.py -q build_ext
	$(PY) -m tests.fuzz run --seconds $(SECONDS) --seed $(SEED)

mutants: build ## take each correctness rule out of a copy of the sources and see its test, or the crash states, find it
	$(PY) -m tests.mutants.run $(ARGS)

annotate: $(DEPS) ## Cython's html pages: which line costs what (build/cython)
	MARS_BUILD=annotate $(PY) setup.py -q build_ext --inplace --force

clean: ## what was built
	rm -rf build dist *.egg-info mars.pyz marsx/_ext/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find marsx tools tests ext -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf .venv

# Everything runs in .venv, made on first use. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
PY := .venv/bin/python
MIN_PYTHON := 3, 10

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test foreign test-browser check lint types bench bench-quality bench-quality-fast crash-test docs figures

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-16s %s\n", $$1, $$2 }'

setup: .venv/.installed ## make .venv with what everything needs, and do nothing else

demo: .venv/.installed ## sample hands with seven samplers, count fingers, print a table, write an image
	@$(PY) scripts/demo.py

test: .venv/.installed ## run the tests, one process a core
	@$(PY) -m pytest -n logical --maxprocesses=8

# Without them their tests are skipped, each with a line; so this says so and goes on where they cannot be had.
foreign: .venv/.installed ## install diffusers and transformers, so that the tests of pipelines run, too
	@$(PY) -c 'from importlib.util import find_spec as f; import sys; sys.exit(not (f("diffusers") and f("transformers")))' || \
	  $(PY) -m pip install --quiet --disable-pip-version-check --retries=1 -c constraints.txt -e '.[foreign]' 2>/dev/null || \
	  echo "diffusers and transformers cannot be installed here; the tests of pipelines are skipped"

test-browser: .venv/.installed ## drive the labelling page in a real browser (Debian: apt install chromium)
	@command -v chromium >/dev/null || \
	  { echo "Error: chromium is not on the PATH; on Debian or Ubuntu: apt install chromium" >&2; exit 1; }
	@$(PY) -c 'import playwright' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt 'playwright>=1.45'
	@$(PY) -m pytest -m slow tests/test_rating_browser.py

check: lint types test ## lint, types and tests

lint: .venv/.installed ## ruff: style and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: .venv/.installed ## mypy, strict
	@$(PY) -m mypy

bench: .venv/.installed ## ratios in time: samplers to Euler, a training step to a plain loop's
	@mkdir -p out
	@$(PY) scripts/bench_speed.py --out=out/bench.json

# The benchmark: experiments/*.toml say what is run. Every line goes on where it stopped.
BENCH := $(PY) scripts/bench.py

bench-quality-fast: .venv/.installed ## the hallucination benchmark in some minutes: few seeds, out/bench-fast/report
	@$(BENCH) run experiments/fast.toml --out=out/bench-fast
	@$(BENCH) report --out=out/bench-fast --dest=out/bench-fast/report

bench-quality: .venv/.installed ## the hallucination benchmark in full, docs/benchmark/report.md; hours, can be interrupted
	@$(BENCH) audit --out=results
	@for experiment in grid25 hands-32 images gate accept rivals; do $(BENCH) run experiments/$$experiment.toml --out=results || exit; done
	@$(BENCH) report --out=results --dest=docs/benchmark

crash-test: .venv/.installed ## kill 48 training runs, go on, compare every bit
	@$(PY) tests/tools/crash_test.py

docs: .venv/.installed ## the documentation as a site, in build/site; it needs no internet to read
	@$(PY) -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@$(PY) -m mkdocs build --quiet
	@echo "build/site/index.html"

figures: .venv/.installed ## the paper's figures from the embedded networks, in out/figures; it goes on where it stopped
	@$(PLOTS)
	@$(PY) scripts/figures.py all

# .venv/.unfinished marks an install that was cut off: what it left may be broken, so it is made anew.
.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "Error: $(PYTHON) is not on the PATH; install Python 3.10 or newer, or give PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(MIN_PYTHON)))' || \
	  { echo "Error: $(PYTHON) is too old; this needs Python 3.10 or newer, or give PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Error: $(PYTHON) lacks the venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if [ -e .venv/.unfinished ] || ! $(PY) -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear .venv; fi
	@touch .venv/.unfinished
	@echo "Installing into .venv (the first time this takes some minutes) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm .venv/.unfinished && touch $@

# Everything runs in .venv, made on first use. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
PY := .venv/bin/python
MIN_PYTHON := 3, 10

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-browser check lint types bench bench-quality bench-quality-fast crash-test docs figures

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-16s %s\n", $$1, $$2 }'

demo: .venv/.installed ## sample hands with and without RODS, count fingers, print a table, write a picture
	@$(PY) scripts/demo.py

test: .venv/.installed ## run the tests
	@$(PY) -m pytest

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

# The benchmark. Every line is a piece of its own, at most two hours on two quiet cores, that goes on where it stopped.
QUALITY := $(PY) scripts/bench.py
PLOTS := $(PY) -c 'import matplotlib' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plots]'
GRID := euler,heun,euler-200,churn,churn-euler,tvf,lid,h-index,overshoot,sigma-offset,random,tag,iq,laplacian,restart,rods-cas,rods-cas-all,rods-sas,rods-sas-all
EXACT := euler,heun,overshoot,restart,rods-cas-all,h-index
HANDS := euler,heun,overshoot,restart,rods-cas-all,rods-sas-all,score detector=readout score_at=0,restart detector=lid lid_sigma=1.38 draws=2 score_at=0.47 threshold=14.71 sigma_r=8.03 rounds=3,h-index window=0,1 rho=4,lid lid_sigma=1.2 draws=16 score_at=0,tvf tvf_sigma=2,sigma-offset kappa=.4 window=.1,.5,random rho=8 window=.2,.6,churn,restart detector=lid lid_sigma=1.07 draws=8 score_at=0.47 threshold=16.88 sigma_r=3.52 rounds=3,restart detector=lid lid_sigma=1.2 draws=4 score_at=0 threshold=15.22 sigma_r=2.24 rounds=3,restart detector=h-index:rho=4,lo=0.6,hi=1.1,mean=true score_at=0.47 threshold=0.006645 sigma_r=3.52 rounds=3,euler-200,iq strength=.2 threshold=22.78 window=sigma:0.461,0.839 lid_sigma=.625 draws=4
PROBES := euler,rods-cas-all,rods-cas-all probe_every=2,rods-cas-all probe_every=4
RENDERED := euler,heun,restart,overshoot rho=8 window=.2,.6,score detector=readout score_at=0,restart detector=lid lid_sigma=1.2 draws=4 score_at=0 threshold=53.74 sigma_r=2.24 rounds=3 margin=0
MNIST := euler,heun,overshoot rho=8 window=.2,.6,score detector=readout score_at=0
SHAPES := euler,restart,overshoot rho=8 window=.2,.6

bench-quality-fast: .venv/.installed ## the hallucination benchmark in some minutes: few seeds, out/bench-fast/report
	@$(QUALITY) --task=grid25 --seeds=0-1999 --batch=2000 --samplers=euler,heun,lid,h-index,overshoot,rods-cas,restart --out=out/bench-fast
	@$(QUALITY) --task=hands-32 --seeds=0-63 --samplers=euler,heun,lid,overshoot,rods-cas,restart --out=out/bench-fast
	@$(PLOTS)
	@$(QUALITY) report --out=out/bench-fast --dest=out/bench-fast/report

bench-quality: .venv/.installed ## the hallucination benchmark in full, docs/benchmark/report.md; hours, can be interrupted
	@$(QUALITY) audit --out=results
	@for i in 0 1 2; do \
	  $(QUALITY) --task=grid25 --network=grid25-$$i --preset=grid25-0 --batch=5000 --samplers=$(GRID) --out=results || exit; \
	done
	@$(QUALITY) --task=grid25-exact --preset=grid25-0 --batch=5000 --samplers=$(EXACT) --out=results
	@$(QUALITY) --task=hands-32 --samplers="$(HANDS)" --out=results
	@$(QUALITY) --task=hands-32 --samplers="euler,restart" --seeds=0-1535 --out=results
	@$(QUALITY) --task=hands-32 --samplers="$(PROBES)" --seeds=0-1023 --out=results
	@$(QUALITY) --task=hands-32 --samplers="euler,rods-cas+heun,rods-cas-5" --seeds=0-255 --out=results
	@$(QUALITY) --task=hands-32 --network=hands-32-1 --samplers="euler,restart" --seeds=0-1023 --out=results
	@$(QUALITY) --task=hands-32 --network=hands-32-1 --samplers="euler,overshoot,rods-cas-all" --out=results
	@$(QUALITY) --task=shapes --samplers="$(SHAPES)" --seeds=0-255 --out=results
	@$(QUALITY) --task=hands-64r --samplers="$(RENDERED)" --out=results
	@$(QUALITY) --task=mnist --samplers="$(MNIST)" --out=results
	@$(QUALITY) --task=mnist --samplers="euler,restart" --seeds=0-1535 --out=results
	@$(PLOTS)
	@$(QUALITY) report --out=results --dest=docs/benchmark

crash-test: .venv/.installed ## kill 48 training runs, go on, compare every bit
	@$(PY) scripts/crash_test.py

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

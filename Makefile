# Everything a person needs: make help. The environment is made on first use and kept in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs
RUN := $(BIN)/python run.py
SETS := decide pilot tasks bases paper

.DEFAULT_GOAL := help
# Threads sleep while they wait: on a busy machine they would spin against those that have work.
export OMP_WAIT_POLICY := PASSIVE
# Large pages for large tensors, where the system offers them: fewer page faults.
export THP_MEM_ALLOC_ENABLE := 1
.PHONY: help run test long browser decoders real slow check format bench paper docs notebook clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,joblib,slurm]'
	@touch $@

run: $(STAMP) ## GPTQ at 3 bits without QEP, with it, and as recommended: about three minutes
	$(RUN) -m experiment=without_qep,with_qep,recommended bits=3 eval.windows=12 eval.tasks=[]

test: $(STAMP) ## the quick tests: offline, tiny random models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not long and not decoders and not browser and not docs' -n auto --dist worksteal

long: $(STAMP) ## what takes longer: whole runs, kills, damage, several processes, saved checkpoints, a device
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'long and not slow' -n auto --dist worksteal

browser: $(STAMP) ## the dashboard in Chromium; skipped where there is none
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'browser and not slow' -n auto --dist loadscope

decoders: $(STAMP) ## every causal-LM type of transformers, tiny: walked, or refused in one line
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m decoders -n auto --dist worksteal

real: $(STAMP) ## the default model against figures that are the same everywhere
	$(BIN)/python -m pytest -m real

slow: $(STAMP) ## the tests on the real default model as well
	$(BIN)/python -m pytest -m slow

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into its standard form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## speed against the counted work, on this machine
	$(BIN)/python -m harness.command.bench
	$(BIN)/python -m analysis.bench

paper: $(STAMP) ## tables, figures, claims and the documents' tables from the committed records
	@for set in $(SETS); do $(BIN)/python -m analysis results/$$set || exit 2; done
	$(BIN)/python -m analysis claims results/decide --out docs/claims.md
	$(BIN)/python -m analysis recipe results/decide --out docs/recipe.md
	@for file in README.md docs/*.md; do \
	  for set in $$(sed -n 's|^<!-- table: \([^ /]*\).*|\1|p' $$file | sort -u); do \
	    $(BIN)/python -m analysis results/$$set --into $$file || exit 2; \
	  done; \
	done

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS) ## the documents as a site, build/site/index.html: opens from a disk, needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python -m pytest -m docs tests/test_site.py

notebook: $(STAMP) ## the outputs of docs/one_layer.ipynb, made again
	$(BIN)/python tests/notebooks.py

clean: ## remove the environment and caches; records stay
	rm -rf $(VENV) build/site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

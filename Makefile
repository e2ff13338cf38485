# Every target does its own set-up: a fresh clone needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Stamps live inside the environment, so that deleting .venv really starts afresh.
MADE    := $(VENV)/.made
RUNTIME := $(VENV)/.installed
DEV     := $(VENV)/.installed-dev
DOCS    := $(VENV)/.installed-docs

BENCHES := $(sort $(patsubst bench/%.py,bench-%,$(wildcard bench/*.py)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check format docs bench clean $(BENCHES)

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@$(foreach b,$(BENCHES),echo '$(b)';)

$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "pgnas needs Python >= 3.11, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUNTIME): pyproject.toml $(MADE)
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(DEV): pyproject.toml $(MADE)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(RUNTIME)

$(DOCS): pyproject.toml $(MADE)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

demo: $(RUNTIME)  ## search a multi-branch ResNet on the handwritten digits under 40 % of its MACs
	$(BIN)/pgnas run --model multibranch-resnet --data digits --out runs/demo --max-macs 40% --seed 0 $(ARGS)

test: $(DEV)  ## run the tests, a process a core (ARGS='-k name' chooses)
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadscope $(ARGS)

check: $(DEV)  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## format the code and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## build the documentation into build/site; a broken link or name fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'build/site/index.html'

bench: $(BENCHES)  ## run every script in bench/
	@test -n '$(BENCHES)' || echo 'bench/ holds no script yet'

$(BENCHES): bench-%: bench/%.py $(DEV)
	$(BIN)/python $< $(ARGS)

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

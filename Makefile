# `make demo` and `make test` install what they need, once, and work offline after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The build of torch; see "A GPU build of torch" in the README. TORCH_INDEX, if set, is the package index it comes from.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo assignments slides test soak lint format

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install what is locked

# torch goes first and alone, so that nothing else can choose another build of it.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("minicos needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP) ## Solve held-out puzzles with the shipped checkpoint; pictures go to out/demo
	@$(BIN)/minicos demo --out out/demo

assignments: $(STAMP) ## Write the students' releases from solutions/
	$(BIN)/minicos grade generate

slides: $(STAMP) ## Run the lecture and write its slides to out/lecture.html
	$(BIN)/minicos slides

test: $(STAMP) ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak and not alone" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "alone and not soak"

soak: $(STAMP) ## Run the long tests too
	$(BIN)/python -m pytest -m "soak or not soak" --timeout 3600

lint: $(STAMP) ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP) ## Mend style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

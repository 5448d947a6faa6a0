# make demo    set everything up and run the whole chain on the demonstration data
# make test    set everything up and run all tests
# make lint    formatter, linter, type checker
# make setup   set up only
# make bench   measure everything against its references, about 15 minutes; figures in bench.json
# make test-commands   run every command that README.md and docs/ print, as another user (some minutes)
# make campaign   faults drawn from a seed, a little of each kind (make campaign CAMPAIGN="--rounds 500 --seed 3" for more)
# make image   build the apptainer image; make image-test proves its recipe where there is no apptainer
SHELL := /bin/bash
# HPC_STRES_VENV=DIR names another environment than .venv, here as for env/setup.sh and the job scripts.
HPC_STRES_VENV ?= .venv
export HPC_STRES_VENV
PYTHON := "$(HPC_STRES_VENV)"/bin/python
PATHS := hpc_stres launch tests env examples setup.py

.PHONY: demo test unit lint setup bench test-commands campaign image image-test

setup:
	@bash env/setup.sh

demo:
	@bash env/setup.sh --quiet
	@$(PYTHON) -m hpc_stres demo

test:
	@bash env/setup.sh --tests
	@bash tests/run_all.sh $(PYTHON)

unit: setup
	@$(PYTHON) -m pytest tests/unit

bench: setup
	@$(PYTHON) -m hpc_stres bench all --threads 1 --json bench.json

lint:
	@bash env/setup.sh --lint
	@$(PYTHON) -m ruff format --check $(PATHS)
	@$(PYTHON) -m ruff check $(PATHS)
	@$(PYTHON) -m mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x env/*.sh slurm/*.sh .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi

test-commands:
	@bash env/setup.sh
	@$(PYTHON) -m tests.commands

CAMPAIGN ?= --short --seed 2
campaign:
	@bash env/setup.sh --tests
	@$(PYTHON) -m tests.campaign $(CAMPAIGN)

image:
	@bash env/build_image.sh

image-test:
	@bash env/setup.sh --tests
	@HPC_STRES_IMAGE_TEST=1 $(PYTHON) -m pytest tests/image

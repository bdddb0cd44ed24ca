# Everything runs from one virtual environment, made by the first command that needs it.
VENV ?= .venv
JOBS ?= $(shell nproc)
PYTHON_IN := $(VENV)/bin/python
export VENV TORCH REQUIREMENTS PYTHON MAX_JOBS

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-seg test test-all lint

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make the environment (.venv); does nothing when it is there
	@tools/support/setup.sh

demo: setup  ## train and evaluate Mask R-CNN RMT-T on a built-in dataset, or on DATA=path/to/coco
	$(PYTHON_IN) tools/quickstart.py detection $(if $(DATA),--data "$(DATA)")

demo-seg: setup  ## the same for semantic segmentation
	$(PYTHON_IN) tools/quickstart.py segmentation

test: setup  ## run the tests, on all cores (JOBS=1 for one); ARGS=... goes to pytest
	$(PYTHON_IN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-all: setup  ## the slow tests too
	$(PYTHON_IN) -m pytest -n $(JOBS) --dist loadfile -m "slow or not slow" $(ARGS)

lint: setup  ## check style and formatting
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .

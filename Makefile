# Every target prepares .venv first; when it is up to date that takes a second or two and no network.

# A sourced ROS would come before the one in .venv.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench guard pictures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## prepare .venv: ROS 2 wheels, torch for the CPU, this package (PYTHON=python3.12 picks another interpreter)
	@command -v $(PYTHON) > /dev/null || { echo 'make setup: there is no $(PYTHON); install Python 3.10 to 3.13, or name one with PYTHON=...'; exit 1; }
	@$(PYTHON) requirements/prepare_venv.py

demo: setup  ## simulate a wall, inspect it live over DDS and again from the bag, compare both with the truth
	@$(RUN) benchmarks/demo.py

test: setup  ## run the whole test suite
	@$(RUN) -m pytest $(PYTEST_ARGS)

lint: setup  ## check style, import border and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

bench: setup  ## measure accuracy and speed, and rewrite docs/benchmarks.md
	@$(RUN) benchmarks/run.py

guard: setup  ## check that no part of a frame takes more than 1.3 times what it did
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) benchmarks/guard.py

pictures: setup  ## take the screenshots in docs/images again
	@$(RUN) benchmarks/pictures.py

clean:  ## remove .venv and everything that was made
	rm -rf $(VENV) build install log out .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

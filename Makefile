# The usual jobs. Every target works alone: what it needs is set up first, once.

VENV := .venv
STAMP := $(VENV)/.setup-complete
PY := $(VENV)/bin/python
SETUP_FILES := requirements.txt requirements-dev.txt requirements-detectron2.txt setup.py \
	tools/setup_env.sh

# The interpreter to build .venv with; only used where .venv has to be made.
PYTHON ?= python3
PYTEST_ARGS ?=
# Two at a time, each in one thread: what two cores like best.
PYTEST_WORKERS ?= 2
DEMO_ARGS ?=

.PHONY: help setup demo test check lint format architecture settings clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make setup    create .venv with everything needed (about 6 GB, some minutes, once)"
	@echo "make demo     pretrain, train and evaluate on blood cells; writes output/demo/"
	@echo "make test     lint, then the tests that need neither a GPU nor much time"
	@echo "make check    lint, then the tests a person runs between edits: under a minute"
	@echo "make lint     ruff check and ruff format --check"
	@echo "make format   let ruff repair and format the code"
	@echo "make settings       write docs/settings.md from the fields that hold the settings"
	@echo "make architecture   draw docs/images/architecture.png from the imports"
	@echo "make clean    remove caches and build products (keeps .venv and output)"
	@echo
	@echo "make PYTHON=python3.12 TARGET   use that interpreter (3.11 or newer) for .venv"
	@echo "make test PYTEST_ARGS='-k irpe'   hand arguments to pytest; demo: DEMO_ARGS"

# The stamp holds the checkout's folder: a .venv that was copied along with a checkout still
# points to the old one.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

# A PYTHON given by the user (on the command line or in the environment) must also be the one
# that .venv was made with; without one, any finished .venv will do.
ifneq ($(origin PYTHON),file)
PY_VERSION := import sys; print(sys.version_info[:2])
ifneq ($(shell $(PY) -c '$(PY_VERSION)' 2>/dev/null),$(shell $(PYTHON) -c '$(PY_VERSION)' 2>/dev/null))
$(STAMP): FORCE
endif
endif

FORCE:

# The script writes the stamp as its last act, so an interrupted set-up is taken up again.
$(STAMP): $(SETUP_FILES)
	@bash tools/setup_env.sh

setup: $(STAMP)

demo: $(STAMP)
	$(PY) projects/blood_cells/run_demo.py --output output/demo $(DEMO_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not slow and not gpu" $(PYTEST_ARGS)

check: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not run and not slow and not gpu" $(PYTEST_ARGS)

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

settings: $(STAMP)
	$(PY) docs/write_settings.py

architecture: $(STAMP)
	$(PY) docs/draw_architecture.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# make quickstart   install into .venv, train a small FASeg on painted scenes, score it, draw its predictions
# make test         install what is missing and run every test
# make faults       kill, stop and starve trainings: all of what `make test` runs a sample of; takes hours
# make fuzz         read a thousand damaged files of each kind; `make test` reads a few; FUZZ=n, FUZZ_SEED=n change that
# make exports      export one model of every kind to ONNX; `make test` exports one; takes an hour
# make lint         ruff check and ruff format --check
# make install      only install into .venv
#
# REQUIREMENTS=requirements-v100.txt uses another set of pins, in an environment of its own, .venv-v100.
# PYTHON=python3.12 uses another Python, VENV=path another place; PIP_ARGS, ARGS and TEST_ARGS are passed to pip,
# train_net.py and pytest.

PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV ?= .venv$(patsubst requirements%,%,$(basename $(notdir $(REQUIREMENTS))))
PIP_ARGS ?=
ARGS ?=
# Two processes suit two cores and their memory; each runs one thread, so that they do not compete for cores.
TEST_ARGS ?= -n 2
FUZZ ?= 1000

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS)
# Stamps of what is installed: newer requirements are installed again, and others, where VENV names one place for two.
INSTALLED := $(VENV)/.fasegr-installed-$(notdir $(REQUIREMENTS))
DEV_INSTALLED := $(VENV)/.fasegr-dev-installed

.PHONY: help install quickstart test faults fuzz exports lint

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(RUN) train_net.py --config-file configs/quickstart/faseg_scenes.yaml $(ARGS)

test: $(DEV_INSTALLED)
	$(RUN) -m pytest $(TEST_ARGS)

faults: $(DEV_INSTALLED)
	FAULTS=1 $(RUN) -m pytest tests/faults -m faults $(TEST_ARGS)

fuzz: $(DEV_INSTALLED)
	FUZZ=$(FUZZ) $(RUN) -m pytest tests/fuzz -m fuzz $(TEST_ARGS)

exports: $(DEV_INSTALLED)
	EXPORTS=1 $(RUN) -m pytest tests/inference/test_export.py

lint: $(DEV_INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(INSTALLED): $(REQUIREMENTS) requirements-common.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "fasegr needs Python 3.10 to 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module does not work; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@rm -f $(VENV)/.fasegr-*
	# fvcore and iopath come as source: they are built with these versions instead of the newest ones
	$(PIP) setuptools==81.0.0 wheel==0.48.0
	$(PIP) --no-build-isolation -r $(REQUIREMENTS)
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

$(DEV_INSTALLED): requirements-dev.txt requirements-export.txt requirements-hub.txt requirements-serve.txt $(INSTALLED)
	$(PIP) -r requirements-dev.txt
	@touch $@

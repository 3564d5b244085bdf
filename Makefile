# make demo        the whole line on this machine, from installation to a summary
# make test        formatting, lint, types and the test suite
# make test-fast   the unit tests alone, in less than a minute

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast lint install clean

demo: install
	$(BIN)/flawline demo $(ARGS)

# The unit tests on all cores, then the others two at a time: those start servers, and wait for them most of the time.
# A file stays in one process, so that its tests share its servers. Exit code 5 is "no such test".
test: install lint
	$(BIN)/python -m pytest -m unit -n auto $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "not unit" -n 2 --dist loadfile $(ARGS) || [ $$? = 5 ]

test-fast: install
	$(BIN)/python -m pytest -m unit -n auto $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 2; }
	@echo "Installing into $(VENV) (2 to 5 minutes, 6 GB; torch is most of it) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[test]'
	@echo "Converting the default backbone once ..."
	$(BIN)/python -c 'from flawline.settings.scorer import ScorerSettings; from scorer.features.conversion import prepare; prepare(ScorerSettings())'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs

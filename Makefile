PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test check lint proto clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	tools/install.sh $(PYTHON) $(VENV)
	touch $@

proto: install
	$(BIN)/python tools/generate_stubs.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py --check

check: install
	$(BIN)/pytest tests/unit tests/simulation tests/architecture -m "not slow"

test: install
	$(BIN)/pytest tests

demo: install
	$(BIN)/python -m deploy.demo

clean:
	rm -rf $(VENV) build dist *.egg-info

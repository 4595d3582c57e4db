# Everything from a clean checkout with Python >= 3.11, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: run test check format lint types imports ui clean

# The main job on the embedded digits: learn a policy, compare it with fixed schedules.
run: $(READY)
	$(BIN)/python -m stepdrop_rl.train_policy
	$(BIN)/python -m stepdrop_rl.evaluate --policy ppo
	@echo
	@echo "To see curves, figures and runs:  make ui   (then open http://127.0.0.1:5000)"

# One torch thread per worker: on few cores, more of them only hinder each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations 25

# The same that CI runs.
check: format lint types imports test

format: $(READY)
	$(BIN)/ruff format --check envs agents stepdrop_rl tests

lint: $(READY)
	$(BIN)/ruff check envs agents stepdrop_rl tests

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

ui: $(READY)
	$(BIN)/mlflow ui

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev,judge]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

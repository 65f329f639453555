# Each target works as the first command on a fresh machine: it makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install quickstart test lint format bench clean

install: $(INSTALLED)

# torch first and pinned: an unpinned torch brings several GB of CUDA to a CPU machine
$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[deepspeed,wandb,serve,dev]"
	touch $(INSTALLED)

quickstart: install
	$(BIN)/python recipes/quickstart.py --config recipes/dial/quickstart.yaml

test: install
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python tests/benchmarks/fork_cache.py
	$(BIN)/python tests/benchmarks/memory_vs_vocabulary.py
	$(BIN)/python tests/benchmarks/eta_comparison.py
	$(BIN)/python tests/benchmarks/step_grpo_overhead.py
	$(BIN)/python tests/benchmarks/guard_on_dial.py
	$(BIN)/python tests/benchmarks/policy_learning.py --seeds 0

clean:
	rm -rf .venv outputs build *.egg-info

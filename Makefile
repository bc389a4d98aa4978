# Every target sets up what it needs: `make demo` works on a fresh checkout.
#
#   WHEELS=DIR   install Python packages from this folder only (no network)
#   PYTHON=...   the Python to build the environment with (3.11 or later)
#   TESTS=...    the tests to run (default: all)
#   REQUIRE=...  tiers that must run whole: a skip in one of them is a failure
#   VERSION=...  the Python of the machine that `make wheels` is for (default: 3.12)

PY      := .venv/bin/python
READY   := .venv/.ready
TESTS   ?= tests
REQUIRE ?=
VERSION ?= 3.12
# What a real card is judged by; TESTS=... is a part of it.
GPU_TESTS = $(if $(filter-out tests,$(TESTS)),$(TESTS),tests/native tests/gpu tests/shim)
C_FILES  = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: build ## a simulated H200 shared by two tenants, in one screen
	@$(PY) -m vgpu_runtime.demo

test: build ## every tier that can run here; names those that cannot
	@$(PY) -m pytest $(TESTS) --require-tiers=$(REQUIRE)

test-gpu: ## the shim's tests, PyTorch and CuPy on this machine's own GPU; works without a network
	@ENVIRONMENT=gpu .ci/environment .venv
	@$(PY) native/build.py
	@$(PY) -m pytest $(GPU_TESTS) --driver=gpu --require-tiers=$(REQUIRE)

bench-gpu: ## what calls cost and how exact the charges are, on this machine's own GPU
	@ENVIRONMENT=gpu .ci/environment .venv
	@$(PY) native/build.py
	@$(PY) -m tests.bench.gpu

rehearse-gpu: build ## `make test-gpu` with a simulated card in the place of the real one
	@state=$$(mktemp -d) && driver=$$(VGPU_STATE_DIR=$$state $(PY) -m vgpu_runtime sim tests/gpu/rehearsal.yaml) && \
		LD_LIBRARY_PATH=$$driver $(PY) -m pytest $(GPU_TESTS) --driver=gpu; status=$$?; rm -rf "$$state"; exit $$status

wheels: $(READY) ## the Python packages of `make test-gpu` into wheels/, for a machine without a network
	@.ci/wheels wheels $(VERSION)

bench: build ## what a call costs with us and without, in one interleaved run
	@$(PY) -m tests.bench

check: $(READY) ## style, types, layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) native/build.py
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache
	@.venv/bin/clang-format --dry-run -Werror $(C_FILES)

format: $(READY) ## rewrite Python and C into the house style
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format -q .
	@.venv/bin/clang-format -i $(C_FILES)

build: $(READY) ## compile libvgpu.so and the simulated GPU
	@$(PY) native/build.py

wheel: $(READY) ## an installable wheel in dist/
	@$(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl

$(READY): pyproject.toml .ci/environment
	@.ci/environment .venv

clean: ## remove everything that is made here
	@rm -rf .venv vgpu_runtime/_native dist wheels .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo test test-gpu bench-gpu rehearse-gpu wheels bench check format build wheel clean
.DEFAULT_GOAL := help

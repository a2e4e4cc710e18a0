# `make help` lists the targets. Set-up lives in files of its own: a second run reuses what the first made.
SHELL := bash
.DEFAULT_GOAL := help

UV_VERSION := 0.13.8
UV := .tools/bin/uv
EXTRA ?= cpu
RUN := .venv/bin
PYTHON_SOURCES := libs/contracts/src/troupe_contracts libs/inference/src libs/workflow/src services/designer/src \
  services/executor/src services/learner/src services/orchestrator/src client/src starter/src services/sandbox_rs/python

.PHONY: help setup postgres quickstart test test-long test-rust lint format protos check-protos proto-baseline
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(UV):
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.ready: $(UV) uv.lock pyproject.toml $(wildcard */*/pyproject.toml */pyproject.toml) services/sandbox_rs/Cargo.lock $(wildcard services/sandbox_rs/src/*.rs) libs/contracts/src/troupe_contracts/access.json
	$(UV) sync --frozen --extra $(EXTRA)
	@touch $@

setup: .venv/.ready ## install everything into .venv (EXTRA=gpu for CUDA engines)

postgres: ## install PostgreSQL from the distribution's packages, for the store's tests (needs apt and root)
	@if compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then exit 0; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "PostgreSQL is not installed and this is not root with apt-get: install the package 'postgresql' yourself"; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; fi

protos: .venv/.ready ## generate the Python stubs from proto/
	rm -rf libs/contracts/src/troupe/v1
	$(RUN)/python -m grpc_tools.protoc -Iproto --python_out=libs/contracts/src --grpc_python_out=libs/contracts/src \
	  --plugin=protoc-gen-mypy=$(RUN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(RUN)/protoc-gen-mypy_grpc \
	  --mypy_out=quiet:libs/contracts/src --mypy_grpc_out=quiet:libs/contracts/src proto/troupe/v1/*.proto
	touch libs/contracts/src/troupe/v1/__init__.py

check-protos: .venv/.ready
	cd proto && ../$(RUN)/buf lint && ../$(RUN)/buf format -d --exit-code
	cd proto && ../$(RUN)/buf breaking --against baseline.binpb
	@before=$$(cat libs/contracts/src/troupe/v1/*.py* | sha256sum); $(MAKE) --no-print-directory protos >/dev/null; \
	  after=$$(cat libs/contracts/src/troupe/v1/*.py* | sha256sum); \
	  [ "$$before" = "$$after" ] || { echo "the generated stubs were out of date: commit what 'make protos' made"; exit 1; }

proto-baseline: .venv/.ready ## accept the contracts as they are: what later changes are compared with
	cd proto && ../$(RUN)/buf build -o baseline.binpb

lint: .venv/.ready check-protos ## lint, formats and types of Python and Rust, and the contracts
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy $(PYTHON_SOURCES)
	cd services/sandbox_rs && cargo fmt --check && cargo clippy --all-targets --quiet -- -D warnings

format: .venv/.ready ## format Python, Rust and the contracts
	$(RUN)/ruff check --fix-only --quiet
	$(RUN)/ruff format
	cd proto && ../$(RUN)/buf format -w
	cd services/sandbox_rs && cargo fmt

test: .venv/.ready ## run the Python tests, end-to-end ones included
	$(RUN)/pytest

test-long: .venv/.ready ## run what `make test` leaves out: kills, full disks, bad input, fuzzing (TESTS=folder)
	$(RUN)/pytest -m long $(TESTS)

test-rust: .venv/.ready ## run the Rust tests
	cd services/sandbox_rs && cargo test --quiet

quickstart: .venv/.ready ## train the starter profile on this machine and compare before with after
	$(RUN)/troupe quickstart

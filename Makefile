# `make help` lists the targets. Set-up lives in files of its own: a second run reuses what the first made.
SHELL := bash
.DEFAULT_GOAL := help

UV_VERSION := 0.13.8
UV := .tools/bin/uv
EXTRA ?= cpu
RUN := .venv/bin

.PHONY: help setup quickstart test lint protos
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(UV):
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.ready: $(UV) uv.lock pyproject.toml $(wildcard */*/pyproject.toml */pyproject.toml) services/sandbox_rs/Cargo.lock $(wildcard services/sandbox_rs/src/*.rs)
	$(UV) sync --frozen --extra $(EXTRA)
	@touch $@

setup: .venv/.ready ## install everything into .venv (EXTRA=gpu for CUDA engines)

protos: .venv/.ready ## generate the Python stubs from proto/
	rm -rf libs/contracts/src/troupe/v1
	$(RUN)/python -m grpc_tools.protoc -Iproto --python_out=libs/contracts/src --grpc_python_out=libs/contracts/src \
	  --plugin=protoc-gen-mypy=$(RUN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(RUN)/protoc-gen-mypy_grpc \
	  --mypy_out=quiet:libs/contracts/src --mypy_grpc_out=quiet:libs/contracts/src proto/troupe/v1/*.proto
	touch libs/contracts/src/troupe/v1/__init__.py

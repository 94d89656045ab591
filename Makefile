# All commands for daily work. Each one, such as `make demo` or `make test`, also works first in a fresh clone.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

ENGINE ?= $(if $(shell command -v podman),podman,docker)
BASE   ?= docker.io/library/python:3.11-slim-bookworm

# Tests start many processes: without bytecode files, which some machines forbid, each compiles what it imports anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install predict demo test test-all test-cluster fuzz mutants lint docs format compile bench image image-cpu image-gpu image-deploy clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## create .venv with all packages for the other targets

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "This needs Python 3.11 or newer. Choose one, for example: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first, with a fixed version: otherwise pip may download gigabytes of CUDA packages
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pipelines,tensorrt-rtx,openvino,quantize,modelopt,automl,tracking,docs,dev]'
	@touch $(READY)

predict: $(READY)  ## a first depth map: create a synthetic pair and predict its disparity with the starter network
	$(BIN)/depth_net synthesize results_dir=runs/predict/pair num_scenes=1 height=480 width=640 max_disparity=96 seed=5
	$(BIN)/depth_net predict runs/predict/pair/scene_0000/dataset/data/left/rgb/0000.png \
		runs/predict/pair/scene_0000/dataset/data/right/rgb/0000.png --output runs/predict \
		--calibration runs/predict/pair/scene_0000/dataset/data/K.txt

demo: $(READY)  ## run the demo pipeline here: synthetic scenes, starter network, fine-tuning, export, engine, report
	$(BIN)/stereo-pipelines run pipelines/demo/compiled/demo.yaml --output-dir runs/demo $(DEMO)

test: $(READY)  ## run the fast tests
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile -m "not slow and not gpu and not container and not service and not browser and not cluster"

test-all: $(READY)  ## run the fast and the slow tests
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile -m "not gpu and not container and not service and not browser and not cluster"

test-cluster: $(READY)  ## run tests on the cluster of KUBECONFIG with Argo; FAKE_KUBELET=1: no nodes (docs/clusters.md)
	$(BIN)/python -m pytest -m cluster tests/cluster

fuzz: $(READY)  ## run FUZZ_CASES (10000) damaged inputs through each file reader, and as many per property test
	$(BIN)/python -m pytest --hypothesis-profile long --timeout 3600 -n 0 tests/fuzz

mutants: $(READY)  ## put 300 small faults into the code, one at a time, and count how many the tests find
	$(BIN)/python benchmarks/mutants.py

lint: $(READY)  ## run ruff, including the format check, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## build the pages of docs/ as build/docs/index.html; a broken link, anchor or reference fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --builder html \
		--doctree-dir build/doctrees --conf-dir docs . build/docs

format: $(READY)  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: $(READY)  ## regenerate all compiled components, pipelines and README tables
	$(BIN)/stereo-pipelines compile

bench: $(READY)  ## run the benchmarks that need no GPU
	$(BIN)/python benchmarks/speed_startup.py
	$(BIN)/python benchmarks/speed_convert.py

image-cpu: NAME = runtime-cpu
image-cpu: EXTRAS = openvino,quantize,automl,tracking
image-cpu: image  ## build the container image for CPU steps (BASE=name@sha256:...; pip's index decides which torch)

# Not the slim base: Triton and TorchInductor compile at run time, which needs gcc and Python's headers.
image-gpu: BASE = docker.io/library/python:3.11-bookworm
image-gpu: NAME = runtime-gpu
image-gpu: EXTRAS = quantize,automl,tracking,modelopt,tensorrt,tensorrt-rtx
image-gpu: image  ## build the container image for GPU steps

image-deploy: NAME = deploy-gpu
image-deploy: EXTRAS = tensorrt,tensorrt-rtx
image-deploy: image  ## build the container image that builds and runs engines

# Collect the wheels first, so that the build needs no network. build/lib could contain deleted modules.
# The base is fixed by its digest: that of BASE, or the one its tag has today. Only docker's image format has a health
# check. The tag stereo-pipelines/runtime, which steps use, is the runtime image built last.
image: $(READY)
	rm -rf build/wheels build/lib
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheels "$(TORCH)" '.[$(EXTRAS)]'
	set -e; base='$(BASE)'; case $$base in *@sha256:*) ;; *) \
		$(ENGINE) image inspect $$base >/dev/null 2>&1 || $(ENGINE) pull --quiet $$base; \
		base=$$($(ENGINE) image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}$(BASE){{end}}' $$base); \
		echo "warning: the tag BASE=$(BASE) can change; to repeat this build use BASE=$$base" >&2;; esac; \
	version=$$($(BIN)/python -c 'import stereo_core; print(stereo_core.__version__)'); \
	$(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) $(BUILD_FLAGS) --file images/Containerfile \
		--build-arg BASE=$$base --build-arg EXTRAS=$(EXTRAS) \
		--build-arg NAME=$(NAME) --build-arg VERSION=$$version --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag stereo-pipelines/$(NAME):$$version \
		$(if $(filter runtime-%,$(NAME)),--tag stereo-pipelines/runtime:$$version) build/wheels

clean:  ## remove runs and caches (not .venv)
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache build *.egg-info

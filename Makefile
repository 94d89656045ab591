# Every command a person types. `make demo` and `make test` each work as the first command in a fresh clone.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

ENGINE ?= $(if $(shell command -v podman),podman,docker)
BASE   ?= docker.io/library/python:3.11-slim-bookworm

.DEFAULT_GOAL := help
.PHONY: help install predict demo test test-all test-cluster fuzz mutants lint docs format compile bench image image-cpu image-gpu image-deploy clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make .venv with everything the other targets use

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and pinned: any looser request pulls gigabytes of CUDA packages
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pipelines,tensorrt-rtx,openvino,quantize,modelopt,automl,tracking,docs,dev]'
	@touch $(READY)

predict: $(READY)  ## a first depth map: a synthetic pair, made here, and the starter network's disparity of it
	$(BIN)/depth_net synthesize results_dir=runs/predict/pair num_scenes=1 height=480 width=640 max_disparity=96
	$(BIN)/depth_net predict runs/predict/pair/scene_0000/dataset/data/left/rgb/0000.png \
		runs/predict/pair/scene_0000/dataset/data/right/rgb/0000.png --output runs/predict \
		--calibration runs/predict/pair/scene_0000/dataset/data/K.txt

demo: $(READY)  ## the whole job on this machine: scenes, the starter as it is, fine-tuned, exported, as an engine; report
	$(BIN)/stereo-pipelines run pipelines/demo/compiled/demo.yaml --output-dir runs/demo $(DEMO)

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not container and not service and not browser and not cluster"

test-all: $(READY)  ## the fast and the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not container and not service and not browser and not cluster"

test-cluster: $(READY)  ## on the cluster of KUBECONFIG, which has Argo; FAKE_KUBELET=1 without nodes (docs/clusters.md)
	$(BIN)/python -m pytest -m cluster tests/cluster

fuzz: $(READY)  ## FUZZ_CASES (10000) damaged inputs a reader, and as many for each property; counts and seconds
	$(BIN)/python -m pytest --hypothesis-profile long --timeout 3600 -n 0 tests/fuzz

mutants: $(READY)  ## 300 small faults in the code, one at a time: the share that the tests notice
	$(BIN)/python benchmarks/mutants.py

lint: $(READY)  ## ruff, format check included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(READY)  ## the pages of docs/ as build/docs/index.html; a broken link, anchor or reference fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --builder html \
		--doctree-dir build/doctrees --conf-dir docs . build/docs

format: $(READY)  ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: $(READY)  ## regenerate every compiled component, pipeline and README table
	$(BIN)/stereo-pipelines compile

bench: $(READY)  ## the benchmarks that need no GPU
	$(BIN)/python benchmarks/speed_startup.py
	$(BIN)/python benchmarks/speed_convert.py

image-cpu: NAME = runtime-cpu
image-cpu: EXTRAS = openvino,quantize,automl,tracking
image-cpu: image  ## container image for steps on CPUs (BASE=name@sha256:...; torch is what pip's index has)

# Not the slim one: Triton and Inductor compile at run time, with gcc and Python's headers.
image-gpu: BASE = docker.io/library/python:3.11-bookworm
image-gpu: NAME = runtime-gpu
image-gpu: EXTRAS = quantize,automl,tracking,modelopt,tensorrt,tensorrt-rtx
image-gpu: image  ## container image for steps on GPUs

image-deploy: NAME = deploy-gpu
image-deploy: EXTRAS = tensorrt,tensorrt-rtx
image-deploy: image  ## container image that builds and runs engines

# Wheels first, here: the build itself needs no network. build/lib would bring modules that are no more.
# The base is taken by its digest: BASE's, or what its tag means today. Only docker's image format has a health check.
# The steps' own image is whichever runtime was built last.
image: $(READY)
	rm -rf build/wheels build/lib
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheels "$(TORCH)" '.[$(EXTRAS)]'
	set -e; base='$(BASE)'; case $$base in *@sha256:*) ;; *) \
		$(ENGINE) image inspect $$base >/dev/null 2>&1 || $(ENGINE) pull --quiet $$base; \
		base=$$($(ENGINE) image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}$(BASE){{end}}' $$base); \
		echo "warning: BASE=$(BASE) may be another one tomorrow; this one is BASE=$$base" >&2;; esac; \
	version=$$($(BIN)/python -c 'import stereo_core; print(stereo_core.__version__)'); \
	$(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) $(BUILD_FLAGS) --file images/Containerfile \
		--build-arg BASE=$$base --build-arg EXTRAS=$(EXTRAS) \
		--build-arg NAME=$(NAME) --build-arg VERSION=$$version --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag stereo-pipelines/$(NAME):$$version \
		$(if $(filter runtime-%,$(NAME)),--tag stereo-pipelines/runtime:$$version) build/wheels

clean:  ## remove runs and caches (not .venv)
	rm -rf runs .pytest_cache .ruff_cache build *.egg-info

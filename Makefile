# Each target does all its own set-up; what is there already is kept.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More for pip, say another package index: make demo PIP_ARGS='--index-url …'
PIP_ARGS ?=
# Linux without an NVIDIA card: the builds of torch for the CPU, which make .venv 1.8 GB; the default ones bring CUDA, 6.4 GB.
# TORCH_INDEX= takes the default ones; another address takes, say, PyTorch's builds for AMD cards
TORCH_INDEX ?= $(shell [ "$$(uname)" != Linux ] || nvidia-smi -L 2>/dev/null | grep -q GPU || echo https://download.pytorch.org/whl/cpu)
# The versions that were tested, on the Python that they were tested on; any other, or PINS=, takes the newest that fit
PINS ?= $(shell $(BIN)/python -c 'import sys; print("-c constraints.txt" * (sys.version_info[:2] == (3, 11)))')
CHECKPOINT ?= nano
# More for `latentsync run`, say RUN_ARGS='--steps 10'
RUN_ARGS ?=
START := $(shell date +%s)

.DEFAULT_GOAL := help
.PHONY: help demo app docs test test-fast smoke smoke-browser pictures lint fuzz assets clean

help:
	@echo "make demo   a portrait says a sentence: out/demo.mp4 and its contact sheet out/demo.png"
	@echo "make app    the web app, in your browser"
	@echo "make test   all tests; make test-fast: the engine and the nodes' schemas"
	@echo "make smoke  the pack in the ComfyUI that COMFYUI_PATH names; make smoke-browser: its front end"
	@echo "make lint   ruff, pyright and the import contracts"
	@echo "make docs   the handbook as a site: out/site/index.html"
	@echo "make pictures   takes every picture of ComfyUI and of the app in the handbook again"
	@echo "make fuzz   damaged files for every parser, FUZZ=10000 each; findings go to out/fuzz"
	@echo "make clean  remove .venv and out"

demo: $(VENV)/.demo assets
	@mkdir -p out
	$(BIN)/latentsync run --image latentsync/assets/astronaut.jpg --audio latentsync/assets/voice.flac --checkpoint $(CHECKPOINT) \
		--out out/demo.mp4 --sheet out/demo.png --json out/demo.json $(RUN_ARGS)
	@echo "Look at out/demo.mp4 and out/demo.png; all of it took $$(( $$(date +%s) - $(START) )) s."

# More for `latentsync app`, say APP_ARGS='--port 8600'
app: $(VENV)/.app assets
	$(BIN)/latentsync app $(APP_ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open out/site/index.html."

# One process for each core, up to four; a test file stays in one process. PYTEST_JOBS=0: all in this one
PYTEST_JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
FAST ?= tests/engine tests/audio tests/media tests/models tests/weights tests/face tests/nodes/test_schema.py \
	tests/nodes/test_rules.py tests/nodes/test_images.py

test: $(VENV)/.dev assets
	$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-fast: $(VENV)/.dev assets
	LATENTSYNC_MEDIA=none LATENTSYNC_GOLDEN=none \
		$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile -m 'not slow and not media' $(FAST) $(PYTEST_ARGS)

# The pack in a real ComfyUI, which COMFYUI_PATH and COMFYUI_PYTHON name: every node and workflow, then one browser pass
SMOKE ?= tests/nodes/test_schema.py tests/nodes/test_face_nodes.py tests/nodes/test_regions.py tests/nodes/test_score_node.py \
	tests/workflows/test_workflows.py tests/workflows/test_foreign.py
SMOKE_BROWSER ?= tests/workflows/test_first_run.py tests/web/test_browser.py
smoke: $(VENV)/.dev assets
	$(BIN)/python -m pytest --durations=5 $(PYTEST_ARGS) $(SMOKE)

smoke-browser: $(VENV)/.dev assets
	@$(call with_browser)
	$(BIN)/python -m pytest --durations=5 $(PYTEST_ARGS) $(SMOKE_BROWSER)

# PICTURES=app, comfyui or templates: only those. ComfyUI is what COMFYUI_PATH and COMFYUI_PYTHON name, else what .ci/host set up
PICTURES ?=
HOST := $(or $(LATENTSYNC_HOSTS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/latentsync-hosts)/comfyui-0.33.0
pictures: export COMFYUI_PATH ?= $(HOST)
pictures: export COMFYUI_PYTHON ?= $(COMFYUI_PATH)/.venv/bin/python
pictures: $(VENV)/.dev $(VENV)/.app assets
	@$(call with_browser)
	$(BIN)/python -m tests.docs.pictures $(PICTURES)

# Say FUZZ_ARGS='media checkpoints' for some parsers, FUZZ_ARGS='--only media:123' for one input
FUZZ ?= 10000
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --count $(FUZZ) $(FUZZ_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# The two small files that nano needs beside its own weights
assets: | $(VENV)/.installed
	@$(BIN)/latentsync download nano

PIP = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) $(PINS)

$(VENV)/.demo $(VENV)/.app $(VENV)/.dev: $(VENV)/.%: pyproject.toml requirements.txt requirements-torch.txt constraints.txt | $(BIN)/pip
	@$(call with_torch)
	$(PIP) -e '.$(if $(filter-out demo,$*),[$*])'
	@$(call with_libraries)
	@touch $@ $(VENV)/.installed

$(VENV)/.docs: docs/requirements.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r docs/requirements.txt
	@touch $@

$(VENV)/.installed:
	@$(MAKE) --no-print-directory $(VENV)/.demo

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is missing or older than Python 3.10; name another one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call apt_get,python3-venv) ; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Debian's root may install what is missing; anybody else is told what to type.
define apt_get
if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	echo "installing $(1)" && apt-get update -q && apt-get install -y -q --no-install-recommends $(1); \
else \
	echo "error: the system lacks $(1); type: sudo apt-get install $(1)"; exit 1; \
fi
endef

# torch from TORCH_INDEX where that answers; else it comes with all other packages.
define with_torch
if [ -z "$(TORCH_INDEX)" ] || $(BIN)/python -c 'import torch' 2> /dev/null; then :; \
elif $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=10)' $(TORCH_INDEX)/torch/ 2> /dev/null; then \
	echo "torch comes from $(TORCH_INDEX): $(VENV) takes about 1.8 GB with the build for the CPU"; \
	$(PIP) --extra-index-url $(TORCH_INDEX) -r requirements-torch.txt || echo "torch: trying the default index"; \
else \
	echo "$(TORCH_INDEX) does not answer: torch comes from the default index; $(VENV) takes 1.8 GB, with CUDA 6.4 GB"; \
fi
endef

define with_browser
$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check 'playwright>=1.45'; \
command -v chromium > /dev/null || command -v google-chrome > /dev/null || { $(call apt_get,chromium) ; }
endef

# mediapipe's wheel takes two libraries from the system, which desktops have and bare servers lack.
define with_libraries
if [ "$$(uname)" = Linux ] && ! $(BIN)/python -c \
	"import ctypes; [ctypes.CDLL(name) for name in ('libEGL.so.1', 'libGLESv2.so.2')]" 2> /dev/null; then \
	$(call apt_get,libegl1 libgles2); \
fi
endef

clean:
	rm -rf $(VENV) out

# `make setup` makes .venv with the tested versions and compiles the kernels; the other targets call it when needed.
# Python 3.10 to 3.14 are supported: make setup PYTHON=/path/to/python3.13

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
KERNELS := $(VENV)/kernels-ready
DEMO := work_dirs/demo
SITE := build/docs

# One process more than processors, since many tests wait for a tool that they have started. OpenMP's threads that wait
# would otherwise take time from those that work.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
    --numprocesses $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')

.PHONY: setup demo test check lint docs
setup: $(KERNELS)

$(READY): constraints.txt setup.cfg setup.py pyproject.toml tools/setup_venv.sh
	PYTHON="$(PYTHON)" bash tools/setup_venv.sh $(VENV)
	touch $@

# The first set-up has compiled them; here they follow changed sources.
$(KERNELS): $(READY) $(wildcard shvit_det/kernels/*.cpp shvit_det/kernels/*.hpp) shvit_det/kernels/building.py
	$(BIN)/python shvit_det/kernels/building.py
	touch $@

demo: $(KERNELS)
	$(BIN)/python tools/train.py configs/mask_rcnn_shvit_s1_sample.py --seed 0 --work-dir $(DEMO)
	$(BIN)/python tools/test.py configs/mask_rcnn_shvit_s1_sample.py "$$(cat $(DEMO)/last_checkpoint)" \
	    --eval bbox segm --work-dir $(DEMO) --show-dir $(DEMO)/pictures
	@echo 'Sample set: data/sample   Log, checkpoints, curves.png: $(DEMO)   Predictions beside ground truth: $(DEMO)/pictures'

test: $(KERNELS) lint
	$(PYTEST)

# For every save: what needs no process of its own, no training and no compiler.
check: $(KERNELS) lint
	$(PYTEST) -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror shvit_det/kernels/*.cpp shvit_det/kernels/*.hpp tests/kernels/*.cpp tests/kernels/*.hpp

# The pages and the API reference as a site; a warning is an error.
docs: $(VENV)/docs-ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . $(SITE)
	@echo 'Site: $(SITE)/README.html'

$(VENV)/docs-ready: $(READY)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

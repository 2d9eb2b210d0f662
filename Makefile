PYTHON ?= python3
VENV := .venv
MODEL ?= sd3
READY := $(VENV)/.ready

.PHONY: demo test lint train clean

demo: $(READY)  ## draw a picture dense and pruned with the embedded model
	$(VENV)/bin/tokenprune demo

test: lint  ## everything that must pass before a change goes in; one process for each core
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses auto --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

train: $(READY)  ## train an embedded model anew under runs/ (hours on a CPU): make train MODEL=sd3 or MODEL=pixart
	$(VENV)/bin/python -m tokenprune.embedded.training $(MODEL) --out runs/shapes-$(MODEL)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

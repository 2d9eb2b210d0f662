PYTHON ?= python3
VENV ?= .venv
PROCESSES ?= auto
MODEL ?= sd3
READY := $(VENV)/.ready
PYTEST := pytest --numprocesses $(PROCESSES) --dist worksteal
# what bench compares with needs a newer torch than the lowest
CORE_TESTS := tests --ignore=tests/bench

.PHONY: demo docs test test-lowest test-newest lint train clean

demo: $(READY)  ## draw a picture dense and pruned with the embedded model
	$(VENV)/bin/tokenprune demo

docs: $(READY)  ## the documentation as a site under build/docs, checked strictly
	$(VENV)/bin/python docs/site/build.py

test: lint  ## everything that must pass before a change goes in; one process for each core
	OMP_NUM_THREADS=1 $(VENV)/bin/$(PYTEST)

test-lowest: $(VENV)-lowest/.ready  ## core and adapters with the lowest versions that are declared
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/$(PYTEST) $(CORE_TESTS)

test-newest:  ## core and adapters with the newest versions that are declared, installed at each run
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test-core]'
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/$(PYTEST) $(CORE_TESTS)

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

$(VENV)-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test-core]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build *.egg-info

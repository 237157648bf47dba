# Each target makes its own environment first (.venv; the second time it is there at once).
#   make demo ARGS="--workflow repaint --checkpoint model.safetensors"
#   make test ARGS="-m 'not browser'"
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
RUN := .venv/bin/python
# Threads that wait must not spin: two processes on few cores would slow each other many times over.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo docs test test-all bench lint env

demo: env
	$(RUN) -m lab.demo $(ARGS)

docs: env
	$(RUN) -m lab.docs $(ARGS)

# Six minutes on two cores: all but what is marked slow or listed in tests/slow.txt, and fewer drawn inputs.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -ra -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: lint
	STEER_FUZZ=$${STEER_FUZZ-1} OMP_NUM_THREADS=1 $(RUN) -m pytest -ra -n $(WORKERS) --dist worksteal $(ARGS)

bench: env
	$(RUN) -m bench $(ARGS)

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m lab.types

env:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed: make PYTHON=... " * (sys.version_info < (3, 10)) or 0)'
	@$(PYTHON) -m lab.env

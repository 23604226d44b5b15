# Everything a checkout needs, from a machine with Python and git: the first target called sets up .venv.
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?= -n 2
FUZZ_ARGS ?= --cases 200000 --processes 2
COVERAGE_ARGS ?=
NOTEBOOKS_ARGS ?=
INTEGRATIONS_VENV ?= .venv-integrations
INTEGRATIONS_ARGS ?=
# The libraries of docs/integrations that no extra brings, in the versions that the tests were run with.
LIBRARIES := transformers==5.24.0 accelerate==1.15.0 diffusers==0.42.1 segmentation-models-pytorch==0.6.0 monai==1.6.1

BIN := $(VENV)/bin
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
PYTHON_VERSION := $(shell $(PYTHON) -c '$(VERSION)' 2>/dev/null)
# The stamp carries the Python version: another PYTHON makes a new environment, a changed pyproject.toml a new install.
INSTALLED := $(VENV)/.installed-$(PYTHON_VERSION)

.PHONY: all install demo test test-integrations notebooks fuzz lint flags docs dist coverage bench clean

all: lint test docs demo

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "xvolution needs Python 3.10 or newer, and '$(PYTHON)' is not one: name one with make PYTHON=python3.12"; exit 1; }
	@test "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" = "$(PYTHON_VERSION)" || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]"
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(INSTALLED)
	$(BIN)/xvolution demo $(DEMO_ARGS)

# One thread for each of the two test processes: more would only wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

# The flows of other libraries, in an environment of their own: one of them is licensed under the AGPL-3.0.
test-integrations: $(INTEGRATIONS_VENV)/.installed
	OMP_NUM_THREADS=1 $(INTEGRATIONS_VENV)/bin/python -m pytest tests/integrations $(INTEGRATIONS_ARGS)

$(INTEGRATIONS_VENV)/.installed: pyproject.toml Makefile
	test -x $(INTEGRATIONS_VENV)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS_VENV)
	$(INTEGRATIONS_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -e ".[dev,ultralytics,hub]" $(LIBRARIES)
	@touch $@

# Runs the notebooks of the documentation; with NOTEBOOKS_ARGS=--inplace their outputs are stored anew.
notebooks: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --timeout=600 $(NOTEBOOKS_ARGS) docs/notebooks/*.ipynb

# Random operators against their deployed forms. Stopped and started again, it goes on where it was; figures are in fuzz.jsonl.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.fuzz --output fuzz.jsonl $(FUZZ_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs src

# What the parsers know of the operators and benches without importing them.
flags: $(INSTALLED)
	$(BIN)/python -m xvolution.training.flags.operators
	$(BIN)/python -m xvolution.bench.flags

# The pages of the results are made on the way, by benchmarks/pages.py.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel and the source archive, as they would be published.
dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Hours: every architecture of timm and torchvision. Stopped and started again, it goes on where it was.
coverage: $(INSTALLED)
	$(BIN)/python -m benchmarks.coverage --output results/coverage.json $(COVERAGE_ARGS)

# For an idle machine. Stopped and started again, it goes on where it was.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench networks
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench networks --runtimes training --batches 8 --networks resnet18 resnet50 --rounds 5
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench operators --operators xvolution se --batches 1 --dtypes float32 \
		--passes inference --memory-formats contiguous channels_last --runtimes torch onnxruntime openvino
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench options --memory-formats contiguous
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench mechanisms
	OMP_NUM_THREADS=1 $(BIN)/xvolution bench scaling

clean:
	rm -rf $(VENV) $(INTEGRATIONS_VENV) build site demo dist

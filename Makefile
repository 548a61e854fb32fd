# make demo   the whole method on the embedded model, a report, and the dashboard
# make test   lint, types and every test
# make long   the tests that make test leaves out: the whole story in a browser, embedded model
# make bench  the benchmarks; their JSON goes to build/
# make replicate   the comparison of alignment methods, hours; REPLICATE_FLAGS=--quick: 30 minutes

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8501

.PHONY: demo serve test lint types unit long bench replicate clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by itself: anything else that asks for it might pick a CUDA build.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/safeneuron demo --port $(PORT) $(DEMO_FLAGS)

serve: $(STAMP)
	$(BIN)/safeneuron serve --port $(PORT)

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest

long: $(STAMP)
	$(BIN)/python -m pytest -m long

bench: $(STAMP)
	mkdir -p build
	$(BIN)/python -m tests.benchmarks.bench_capture --json build/bench_capture.json
	$(BIN)/python -m tests.benchmarks.bench_attack --json build/bench_attack.json
	$(BIN)/python -m tests.benchmarks.bench_store --json build/bench_store.json
	$(BIN)/python -m tests.benchmarks.bench_dashboard --json build/bench_dashboard.json
	$(BIN)/python -m tests.benchmarks.bench_align --model smollm2-135m-aligned --json build/bench_align.json

replicate: $(STAMP)
	$(BIN)/python -m analysis.replicate $(REPLICATE_FLAGS)

clean:
	rm -rf $(VENV) build

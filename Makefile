# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := $(wildcard requirements/*.txt)

.PHONY: help demo test lint bench conformance prove clean

help:
	@echo "make demo   export the shipped digits network to ONNX and NIR, run and verify both"
	@echo "make test   run all tests, the NIR simulators included"
	@echo "make lint   ruff, mypy and import-linter"
	@echo "make bench  speed, as ratios within one interleaved run"
	@echo "make conformance  networks x NIR dialects x simulators, into docs/conformance.md"
	@echo "make prove  the full-size claims; writes the tables that docs/ quotes"

# The project with -e and the real NIR simulators, whose own requirements cannot be met in one environment.
.venv/ready: pyproject.toml $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements/base.txt
	$(PIP) -r requirements/simulators.txt
	$(PIP) --no-deps -r requirements/simulators-no-deps.txt
	$(PIP) -e ".[examples]"
	touch $@

.venv/ready-test: .venv/ready
	$(PIP) -r requirements/test.txt
	$(PIP) --no-deps -r requirements/train-no-deps.txt
	touch $@

demo: .venv/ready
	@$(BIN)/python examples/demo.py

test: .venv/ready-test
	OMP_NUM_THREADS=1 DALIF_REQUIRE_SIMULATORS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# mypy and import-linter see exporters/ and runtimes/ under their installed names in an installed copy only.
lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck
	$(PIP) --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--python-executable ../../$(BIN)/python -p dalif_deploy
	cd build/typecheck && ../../$(BIN)/lint-imports --config ../../pyproject.toml

bench: .venv/ready
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/bench_exact.py

conformance: .venv/ready
	$(BIN)/python benchmarks/conformance.py

prove: .venv/ready
	$(BIN)/python benchmarks/prove.py

clean:
	rm -rf .venv build demo-output

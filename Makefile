# make demo    compress the smart-home model for a home gateway and talk to the result (a few minutes, no network)
# make check   what every change must pass: lint, types, import rules, README blocks, schemas, the quick tests
# make test    the same with the slow tests: what CI runs
# make venv    only the environment; made on first use, and again when its inputs change
# make clean   what the others made, without the environment

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.ready

.PHONY: demo test check venv clean

demo: $(STAMP)
	$(RUN) examples/demo.py

test: $(STAMP)
	$(RUN) tools/check.py --all

check: $(STAMP)
	$(RUN) tools/check.py

venv: $(STAMP)

# pip before 22 cannot install pyproject.toml projects in place. Images are never read, so llama.cpp is built without
# that part of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 22)' || $(RUN) -m pip install --upgrade pip
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $(CMAKE_ARGS)" $(RUN) -m pip install -c constraints.txt -e '.[gguf,onnx,litert-convert,litert-lm,compress,data,evaluate,track,ray,monitor,server,parquet,mqtt,otlp,sign,postgres,dev]'
	touch $@

clean:
	rm -rf build build-* dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

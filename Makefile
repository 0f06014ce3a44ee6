PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test check fix bench clean

serve: .venv/.runtime ; $(BIN)/turbosparse serve $(ARGS)
test: .venv/.dev ; $(BIN)/pytest $(ARGS)
check: .venv/.dev ; $(BIN)/ruff format --check && $(BIN)/ruff check && $(BIN)/pyright
fix: .venv/.dev ; $(BIN)/ruff format && $(BIN)/ruff check --fix
bench: .venv/.dev ; $(BIN)/python benchmarks/ffn.py && $(BIN)/python benchmarks/serve.py
clean: ; rm -rf .venv build *.egg-info

.venv/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch .venv/.runtime $@

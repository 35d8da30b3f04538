# Two commands: `make serve` and `make test`. Both make .venv first, if need be.
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: serve test check clean

serve: $(VENV)/.installed
	$(BIN)/longspan serve $(ARGS)

test: $(VENV)/.installed
	scripts/check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.installed
	scripts/check

$(VENV)/.installed: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

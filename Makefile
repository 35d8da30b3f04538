# Two commands: `make serve` and `make test`; `make results` for who measures, `make soak` for who doubts. All make .venv
# first, if need be.
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# A folder of traces, in the format of docs/simulator.md: with it `make results` simulates anew before it draws.
TRACES ?=

.PHONY: serve test test-clients test-browser test-cluster test-vllm check soak results clean

serve: $(VENV)/.installed
	$(BIN)/longspan serve $(ARGS)

test: $(VENV)/.installed
	scripts/check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-clients test-browser test-cluster test-vllm: $(VENV)/.installed
	scripts/acceptance $(@:test-%=%) $(ARGS)

check: $(VENV)/.installed
	scripts/check

# Half an hour with everything on: benchmarks/robustness/soak.py. ARGS="--minutes 2" is a shorter one.
soak: $(VENV)/.installed
	$(BIN)/python -m benchmarks.robustness.soak $(ARGS)

# docs/results.md and docs/plots/ out of benchmarks/results/*.json.
results: $(VENV)/.installed
ifneq ($(TRACES),)
	$(BIN)/python -m benchmarks.paper.loongserve --traces $(TRACES)
	$(BIN)/python -m benchmarks.paper.medha --traces $(TRACES)
	$(BIN)/python -m benchmarks.simulator.speed --trace $(TRACES)/loongserve_mixed.csv.gz \
		--policies elastic_fcfs,loongserve,static_sp --rate 0.28 --json simulator_speed
endif
	$(BIN)/python docs/render_results.py

$(VENV)/.installed: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

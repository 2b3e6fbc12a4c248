# Two commands, each with all its own set-up: `make demo` and `make test`.
PYTHON ?= python3
DATA ?=
COMMUNITIES ?=
export PYTHON TORCH_INDEX

.PHONY: demo test check clean
.DEFAULT_GOAL := demo

.venv/.installed: pyproject.toml constraints.txt deploy/install.sh
	bash deploy/install.sh

# A federation of three institutions on this machine. DATA=<folder of *.jsonl> takes other communities.
demo: .venv/.installed
	.venv/bin/python deploy/demo/run.py $(if $(DATA),--data "$(DATA)") $(if $(COMMUNITIES),--communities $(COMMUNITIES))

# The whole gate: format, lint, types, arrows, generated code, tests with the network off, the bare auditor's install.
test: .venv/.installed
	bash deploy/gate.sh

clean:
	rm -rf .venv .demo

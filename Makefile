# `make help` lists the targets. Needed on the machine: python3 >= 3.11 with venv, make, gcc.
PYTHON3 ?= python3
VENV := .venv
SERVER_VENV := .venv-server
TRITON_VENV := .venv-triton
MOTO_VENV := .venv-moto
TRITON_REPOSITORY := build/triton/repository
PYTHON := $(VENV)/bin/python
PIP_INSTALL := -m pip install --disable-pip-version-check --no-input --require-hashes --no-deps
# Where `make train-small` keeps its runs and finds (or downloads) CIFAR-10.
RUNS ?= runs
DATA_DIR ?= $(or $(AWNET_DATA_DIR),data)
# More options for the program behind a target: make serve ARGS="--port 9000", make test ARGS="-k readme".
ARGS ?=
# make serve ENGINE=triton: in front of the Triton that `make triton` runs.
ENGINE ?=
# Foolbox, used in tests, imports GitPython, which complains where git is missing.
export GIT_PYTHON_REFRESH := quiet

.DEFAULT_GOAL := help
.PHONY: help serve triton test test-fast check format site train-small tables-small sbom lock clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(SERVER_VENV)/.locked ## Serve the bundled model on 127.0.0.1:8000
	$(SERVER_VENV)/bin/python -m server $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

triton: $(TRITON_VENV)/.locked ## Run a real Triton on 127.0.0.1:8100-8102, for make serve ENGINE=triton
	$(TRITON_VENV)/bin/python -m export.triton_python --out $(TRITON_REPOSITORY)
	$(TRITON_VENV)/bin/python deploy/triton/run.py --venv $(TRITON_VENV) --repository $(TRITON_REPOSITORY) $(ARGS)

# A test process for each core, four at most: each of them imports torch. What shares a server stays together.
TEST_PROCESSES ?= -n auto --maxprocesses 4

test: $(VENV)/.locked ## Run the whole test suite
	$(PYTHON) -m pytest $(TEST_PROCESSES) --dist loadfile $(ARGS)

test-fast: $(VENV)/.locked ## Run the tests that start nothing and take no time: a minute on two cores
	$(PYTHON) -m pytest $(TEST_PROCESSES) --dist worksteal -m "not process and not real and not slow" $(ARGS)

check: $(VENV)/.locked ## Formatting, lint, types and import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.locked ## Put the code into the house format and mend what lint can mend
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

site: $(VENV)/.locked ## Build the documents into build/site; a broken link is an error
	$(PYTHON) -m sphinx -q --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
	@echo "build/site/index.html"

# The stages of the bundled model, in order: each starts from those before it, resumes where it stopped, and only says so
# where it is finished.
STAGES := small/0-trunk small/a-detector variants/robust-teacher small/d-robust

train-small: $(VENV)/.locked ## Train the bundled model again, stage by stage
	@mkdir -p $(DATA_DIR)
	@set -e; for stage in $(STAGES); do \
	  name=$$(basename "$$stage"); \
	  echo "== $$name"; \
	  $(PYTHON) -m training.train --recipe training/recipes/$$stage.toml --data-dir $(DATA_DIR) --out $(RUNS)/small/$$name --resume $(ARGS); \
	done

# Hours on two cores; killed and started again it goes on. A second `python -m training.reproduction.sweep` beside it shares the work.
tables-small: $(VENV)/.locked ## Train and judge every network of the paper's tables at a small scale
	@mkdir -p $(DATA_DIR)
	$(PYTHON) -m training.reproduction.sweep --data-dir $(DATA_DIR) --runs $(RUNS)/tables $(ARGS)
	$(PYTHON) -m training.reproduction.tables --table all --runs $(RUNS)/tables --out training/reports/tables
	$(PYTHON) -m training.reproduction.claims --runs $(RUNS)/tables --out training/reports/tables --page docs/reproduction.md
	@set -e; for figure in 1 3 4 5 6 7 8; do \
	  $(PYTHON) -m training.reproduction.figures --figure $$figure --spec training/reproduction/figures-small.toml --root $(RUNS)/tables \
	    --data-dir $(DATA_DIR) --out training/reports/figures; \
	done

sbom: $(VENV)/.locked ## Write build/sbom.json: each package and model of the image, with hashes (CycloneDX)
	$(PYTHON) -m deploy.sbom --out build/sbom.json $(ARGS)

lock: $(VENV)/.locked ## Resolve requirements/*.txt again (UPGRADE=--upgrade takes newer releases)
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url $(UPGRADE) \
	  --custom-compile-command "make lock" pyproject.toml -o requirements/server.txt
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url $(UPGRADE) \
	  --constraint requirements/server.txt --all-extras --custom-compile-command "make lock" pyproject.toml -o requirements/dev.txt
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url $(UPGRADE) \
	  --constraint requirements/server.txt --override requirements/server-cpu.in --custom-compile-command "make lock" \
	  pyproject.toml requirements/server-cpu.in -o requirements/server-cpu.txt
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url $(UPGRADE) \
	  --python-version 3.11 --custom-compile-command "make lock" requirements/triton.in -o requirements/triton.txt
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url $(UPGRADE) \
	  --custom-compile-command "make lock" --python-version 3.11 requirements/moto.in -o requirements/moto.txt

clean: ## Remove the environments and every cache
	rm -rf $(VENV) $(SERVER_VENV) $(TRITON_VENV) $(MOTO_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made once for each lock: the stamp inside it is newer than the lock it was made from.
$(VENV)/.locked: requirements/dev.txt
	@echo "Setting up $(VENV) for everything: about 7.3 GB, most of it torch; one to four minutes."
	$(call install,$(VENV))

$(SERVER_VENV)/.locked: requirements/server.txt
	@echo "Setting up $(SERVER_VENV) for the server alone: about 540 MB, a quarter of a minute to over one."
	$(call install,$(SERVER_VENV))

$(TRITON_VENV)/.locked: requirements/triton.txt
	@echo "Setting up $(TRITON_VENV) for the real Triton: about 450 MB, half a minute."
	$(call install,$(TRITON_VENV))

$(MOTO_VENV)/.locked: requirements/moto.txt
	@echo "Setting up $(MOTO_VENV) for a server of S3: about 140 MB, a quarter of a minute."
	$(call install,$(MOTO_VENV))

define install
@$(PYTHON3) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "AW-Net needs Python 3.11 or newer, and $(PYTHON3) is %d.%d; try make PYTHON3=python3.11" % v)'
$(PYTHON3) -m venv $(1)
$(1)/bin/python $(PIP_INSTALL) -r $<
@touch $@
@du -sh $(1)
endef

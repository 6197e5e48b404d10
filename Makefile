# Every target sets .venv up first if need be. CI runs the same targets.
PYTHON_BIN := .venv/bin
SCRIPTS := $(wildcard tests/*.sh tools/*.sh tools/setup/*.sh examples/*.sh examples/atlas/*.sh examples/recipe/*.sh examples/slurm/*)
NATIVE := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.PHONY: setup fix check test parity e2e bench docs lock

setup:  ## make or update .venv
	@bash tools/setup_venv.sh

fix: setup  ## put right what can be put right by machine
	$(PYTHON_BIN)/ruff check --fix .
	$(PYTHON_BIN)/ruff format .
	$(PYTHON_BIN)/clang-format -i $(NATIVE)

check: setup  ## everything that needs no run: lint, format, types, layers
	$(PYTHON_BIN)/ruff check .
	$(PYTHON_BIN)/ruff format --check .
	$(PYTHON_BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(PYTHON_BIN)/shellcheck .ci/run $(SCRIPTS)
	$(PYTHON_BIN)/hadolint containers/Dockerfile
	$(PYTHON_BIN)/mypy
	$(PYTHON_BIN)/lint-imports

test:  ## all tests
	bash tests/run.sh

parity:  ## ours = Hugging Face, layout A = layout B
	bash tests/run.sh tests/parity

e2e:  ## raw files -> train -> kill -> resume -> export -> evaluate
	bash tests/run.sh tests/e2e

docs:  ## links and commands in the documentation lead somewhere
	bash tests/run.sh tests/architecture/test_docs.py

lock:  ## write requirements.lock anew with uv; UPGRADE=--upgrade takes newer versions
	uv pip compile $(UPGRADE) --universal --python-version 3.12 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --extra hf --extra examples \
		--extra dev pyproject.toml -o requirements.lock

bench: setup  ## every benchmark, one after the other; one that needs more says so
	@for file in $(filter-out benchmarks/claims.py benchmarks/mixes.py benchmarks/public_vila_reader.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$file"; $(PYTHON_BIN)/python "$$file"; \
	done

# make setup   the environment, in .venv/, with the Triton server
# make demo    a clip and an image through the whole pipeline, on tiny checkpoints; videos in outputs/
# make test    lint, types, and every test
# make clean   removes what the others made

PYTHON ?= python3.11
ROOMS = client export guardrail model_repository networks runtime

.PHONY: setup demo lint test clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[server,onnx,dev]'
	.venv/bin/python -m cosmos_triton.export.server_binary
	touch $@

demo: setup
	.venv/bin/python -m cosmos_triton.export.demo

# mypy finds packages by folder name: give it a tree in which the rooms stand under cosmos_triton/.
.mypy_tree: Makefile
	mkdir -p $@/cosmos_triton
	for room in $(ROOMS); do ln -sfn ../../$$room $@/cosmos_triton/$$room; done
	touch $@

lint: setup .mypy_tree
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/hadolint Dockerfile.triton
	cd .mypy_tree && ../.venv/bin/mypy --config-file ../pyproject.toml -p cosmos_triton

test: lint
	.venv/bin/python -m pytest

clean:
	rm -rf .venv .mypy_tree .mypy_cache .pytest_cache .ruff_cache *.egg-info build checkpoints/tiny outputs

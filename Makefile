# make setup   the environment, in .venv/, with the Triton server
# make demo    a clip and an image through the whole pipeline, on tiny checkpoints; videos in outputs/
# make check   lint, types, unit tests
# make test    lint, types, and every test
# make clean   removes what the others made

PYTHON ?= python3.11

.PHONY: setup demo lint check test clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[server,onnx,dev]'
	.venv/bin/python -m cosmos_triton.serving.server_binary
	touch $@

demo: setup
	.venv/bin/python -m cosmos_triton.tiny.demo

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/hadolint Dockerfile.triton
	.venv/bin/mypy -p cosmos_triton

check: lint
	.venv/bin/python -m pytest tests/unit

test: lint
	.venv/bin/python -m pytest

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info build checkpoints/tiny outputs

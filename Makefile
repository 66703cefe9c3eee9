# make setup   the environment, in .venv/, with the Triton server
# make demo    a clip and an image through the whole pipeline, on tiny checkpoints; videos in outputs/
# make check   lint, types and the unit tests, side by side
# make test    lint, types and every test, side by side
# make chaos   kills, hangs and other faults on tiny deployments, with figures; takes half an hour
# make clean   removes what the others made

PYTHON ?= python3.11

.PHONY: setup demo check test chaos clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[server,onnx,dev]'
	.venv/bin/python -m cosmos_triton.serving.server_binary
	touch $@

demo: setup
	.venv/bin/python -m cosmos_triton.tiny.demo

check: setup
	.venv/bin/python tests/run_lanes.py lint types unit

test: setup
	.venv/bin/python tests/run_lanes.py lint types unit component parity gpu server pipeline

chaos: setup
	.venv/bin/python tests/run_lanes.py chaos

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info build checkpoints/tiny outputs

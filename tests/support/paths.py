"""Where things of the tests and of the tree lie."""

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
RELEASED_MANIFESTS = SUPPORT / "checkpoints.json.gz"  # names, shapes and dtypes of every released file
TOYS = SUPPORT / "toy_repository"

"""What every command's parser is added to."""

from __future__ import annotations

import argparse

Commands = argparse._SubParsersAction  # argparse has no public name for it

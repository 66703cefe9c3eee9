from __future__ import annotations

import signal

import torch

# The networks here are tiny: a second thread costs more in waiting than it brings, most of all on a busy machine.
torch.set_num_threads(1)

# A shell starts what it puts in the background with SIGINT ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

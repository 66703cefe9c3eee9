from __future__ import annotations

import torch

# The networks here are tiny: a second thread costs more in waiting than it brings, most of all on a busy machine.
torch.set_num_threads(1)

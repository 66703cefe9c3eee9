"""From checked checkpoints to a supervised tritonserver: run directory, server process, supervisor."""

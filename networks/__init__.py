"""What the models are: torch modules with the released checkpoints' key names. No I/O, no serving."""

"""What the Triton models' `model.py` share: orchestrator, settings, jobs, tensors, responses, metrics."""

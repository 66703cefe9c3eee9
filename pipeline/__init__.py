"""What the `model.py` of the Triton models share: the pipeline itself, and how each model reads requests and answers.

The pipeline: pipeline_model (requests in, responses out), job (one request), orchestrator (through the stages),
stage_calls (one call of a stage). Stages: stage (a stage's side of it). Both: settings, tensors, responses, errors,
job_files, metrics.
"""

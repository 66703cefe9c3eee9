from support.pipeline_fixtures import base, checkpoints, video2world  # noqa: F401

from support.pipeline_fixtures import base, checkpoints, exported, video2world  # noqa: F401

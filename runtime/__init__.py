"""How the models run, without Triton: engines, samplers, media, checkpoint loading."""

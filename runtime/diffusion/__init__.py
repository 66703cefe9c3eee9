"""The diffusion decoder: EDM sampler and the whole stage from tokens to video."""

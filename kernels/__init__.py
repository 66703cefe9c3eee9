"""Triton kernels of the diffusion decoder and the video tokenizers, and the networks rebuilt on them for a GPU."""

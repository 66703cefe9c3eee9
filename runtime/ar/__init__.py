"""The autoregressive sampler: engine, decoders, sampling, GPU kernels."""

"""From released files to what Triton loads: converted checkpoints, ONNX graphs, TensorRT plans."""

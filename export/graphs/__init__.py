"""Graphs of the stateless stages, for ONNX Runtime and TensorRT."""

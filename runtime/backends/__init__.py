"""Backends that run a network: torch, ONNX Runtime or TensorRT."""

"""What clients connect to: HTTP, gRPC and metrics in one process of its own, in front of a private tritonserver."""

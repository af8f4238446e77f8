"""The MLX runtime: our kernels on Apple and NVIDIA GPUs."""

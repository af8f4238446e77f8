"""Kernels for Apple GPUs: bodies for `mx.fast.metal_kernel`."""

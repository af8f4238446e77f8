"""Kernels for NVIDIA GPUs: bodies for `mx.fast.cuda_kernel`."""

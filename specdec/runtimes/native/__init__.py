"""The native runtime: C++ kernels on the CPU."""

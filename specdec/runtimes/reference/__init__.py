"""The reference runtime: plain MLX operations."""

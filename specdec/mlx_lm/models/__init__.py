"""mlx-lm keeps its caches in `models.cache`; so does this package."""

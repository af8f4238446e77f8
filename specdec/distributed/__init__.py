"""Models that several processes run together, on one machine or several, over MLX's own distribution.

Rank 0 decides and the others follow: it sends them every pass (`leader`, `follower`), and each runs its part of it with
a runtime of its own (`specdec.runtimes.share`). Rows go from rank to rank through `mlx.core.distributed` (`group`).
"""

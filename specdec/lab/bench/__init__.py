"""Measuring: prompts, the grid of contenders, alternating runs, what the numbers say, and reports of them."""

"""Measuring: speed (`bench`), quality (`eval`), and effort by matrix (`tune`)."""

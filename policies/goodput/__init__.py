"""The default policy: choose what brings the most tokens a second."""

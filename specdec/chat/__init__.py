"""A conversation at a terminal: `specdec chat`. Answers come from `specdec.stream`."""

"""A small synthetic world, and the tiny base that was trained on it and ships with the package."""

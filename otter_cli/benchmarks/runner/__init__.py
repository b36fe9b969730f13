"""Run a benchmark in a folder, resume it, and read finished runs again."""

"""Methods: the ways of generating, and of monitoring, that benchmarks compare."""

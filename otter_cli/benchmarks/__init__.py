"""Benchmarks against baselines: a run folder of samples first, numbers with intervals from them."""

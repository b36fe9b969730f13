"""Benchmarks against baselines.

A run first writes its samples to a folder, then computes figures with intervals from them.
runner/ runs, tasks/ says what is measured, methods/ generates, metrics/ computes the figures."""

"""The benchmarks: preference, detox, detection, speedup, and accuracy on pairs."""

"""`otter bench matrix`: many settings and seeds, a run folder each, one table and one plot."""

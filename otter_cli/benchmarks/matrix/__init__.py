"""`otter bench matrix`: many settings and seeds, one run folder each, one table and one plot."""

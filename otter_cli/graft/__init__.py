"""Grafting: an insertion is planned, priced, initialised and written beside a base.

In reading order: config.py (sizes) and plan.py (every tensor, from the family shape of a folder),
price.py, initial_values.py, storage.py (the streamed write), manifest.py (otter.json), and
surgery.py, which does it all. grafted_folder.py opens and updates a graft, base_check.py says
whether a base runs.
"""

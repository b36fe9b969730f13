"""Training data without a data set: the base continues prompts, and a scorer labels what it wrote.

prompts -> `write_texts` (the base's own continuations) -> `label_texts` (each text asked once)
-> `teach` (rows on disk, with a recipe's source that names their columns)
"""

from otter_cli.teaching.rows import Teaching, teach

__all__ = ["Teaching", "teach"]

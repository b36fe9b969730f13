"""Training data without a data set: the base continues prompts, and a scorer labels the texts.

prompts -> `write_continuations` (the base's own texts) -> `label_texts` (each text scored once)
-> `teach` (rows on disk, with the columns of their labels)"""

from otter_cli.teaching.rows import TeachingSettings, teach

__all__ = ["TeachingSettings", "teach"]

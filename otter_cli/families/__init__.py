"""Model families, as data: where their modules are, their sizes, and what is supported."""

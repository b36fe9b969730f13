"""The tokenizer of a folder."""

from otter_cli.model.pretrained import load_tokenizer

__all__ = ["load_tokenizer"]

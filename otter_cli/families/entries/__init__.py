"""One entry a family, kin beside kin."""

from otter_cli.families.entries import llama

ENTRIES = (*llama.ENTRIES,)

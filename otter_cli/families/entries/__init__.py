"""One entry a family, kin beside kin."""

from otter_cli.families.entries import gemma, llama, olmo

ENTRIES = (
    *llama.ENTRIES,
    *gemma.ENTRIES,
    *olmo.ENTRIES,
)

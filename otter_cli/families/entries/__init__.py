"""One entry a family, kin beside kin."""

from otter_cli.families.entries import experts, gemma, gpt, llama, olmo, parallel

ENTRIES = (
    *llama.ENTRIES,
    *gemma.ENTRIES,
    *olmo.ENTRIES,
    *parallel.ENTRIES,
    *gpt.ENTRIES,
    *experts.ENTRIES,
)

"""The page of `otter bench`; each benchmark registers itself here, from a file of its own."""

from otter_cli.cli.app import verb_app

app = verb_app(
    help="Compare the insertion with plain decoding and baselines, caches on everywhere. The same "
    "command again resumes: what is in the run folder is never generated twice. "
    "--method takes value, vocabulary, args, rad, genarm, dexperts, dexperts-inserted, best-of-n, "
    "early-stop, future, prompt-lookup, draft-model; each with graft=DIR, signal=NAME, "
    "temperature=T where wanted.",
    example="""\
    otter bench preference grafted --prompts p.jsonl --task-head head --reward-model rm --gold gold
    otter bench preference ... --method rad:model=rm,strength=2 --method bon=best-of-n:n=8,top_p=0.9
    otter bench detox grafted --prompts p.jsonl --task-head head --detoxify detoxify-mini
    otter bench speedup grafted --prompts p.jsonl --task-head head
    otter bench lm-eval grafted --tasks blimp_anaphor --include-path my-tasks
    otter bench overhead --shape llama-134m --threads 2
    otter bench report runs/speedup-0123456789
    otter bench compare runs/speedup-0123456789 runs/speedup-9876543210
    otter bench check runs/speedup-0123456789 --expect expectations.yaml""",
)

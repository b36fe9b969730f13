"""`otter generate`: writes text, with the values of the signals for every token."""

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.generate_options import GenerateOptions

app = verb_app()


@verb(
    app,
    example="""\
    otter generate grafted "How are you?"
    otter generate grafted "How are you?" --guide reward:1.5 --gate "entropy>1" --candidates 10
    otter generate grafted "How are you?" --draft future --tree learnt:16 --max-new-tokens 64
    cat prompts.txt | otter generate grafted - --json""",
    uses_graft=True,
    computes=True,
)
def generate(options: GenerateOptions) -> Outcome:
    """Write text. Each token comes with the values of its signals, from the same pass.

    Without --guide, the text equals the base's own, bit for bit. If the base has a chat template,
    the prompt is sent as a message; --raw continues plain text instead. In a pipe or under --quiet,
    stdout gets the new text alone, and with --details or --json the signals too. For several
    prompts, --json prints one line per prompt.
    """
    from otter_cli.cli.generate_run import GenerateRun, read_requested_prompts
    from otter_cli.cli.generate_view import plain_texts, texts_view

    prompts = read_requested_prompts(options.prompt, options.file)
    records = GenerateRun(options).run(prompts)
    data = records[0] if len(records) == 1 else records
    if options.details is not None:
        view = texts_view if options.details else plain_texts
        return Outcome(data, view=lambda: view(records))
    return Outcome(data, lambda: texts_view(records), piped=lambda: plain_texts(records))

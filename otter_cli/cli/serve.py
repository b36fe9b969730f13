"""`otter serve`: a graft behind OpenAI's API, with a page for browsers."""

from importlib.util import find_spec

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.distribution import missing_extra
from otter_cli.serving.options import ServeOptions

app = verb_app()

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


@verb(
    app,
    example="""\
    otter serve grafted
    otter serve grafted --port 9000 --max-batch 4
    OTTER_API_KEY=secret otter serve grafted --host 0.0.0.0
    otter serve grafted --engine vllm --vllm-args '--dtype float32'""",
    uses_graft=True,
    computes=True,
)
def serve(options: ServeOptions) -> Outcome:
    """Serve a grafted model with OpenAI's API: the official client works unchanged.

    A request may name `signals` to return beside each token, a `guide` with strengths, and
    `stop_when` bounds, such as toxicity>0.9. A request without them gets the base's own text. Open
    the address in a browser to watch the signals of an answer while it is written.

    With --engine vllm, vLLM serves the graft and takes the same fields; guides are then signals of
    next tokens, and there is no page. Ctrl-C stops the server: running answers may end first.
    """
    if options.engine == "vllm":
        from otter_cli.serving.vllm.server import serve_vllm

        code = serve_vllm(options)
        return Outcome(
            {"engine": "vllm", "model": options.name, "exit_code": code},
            view=lambda: "vLLM has ended" + (f" with exit code {code}" if code else ""),
            exit_code=int(code != 0),
        )
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise missing_extra("otter serve", package, "serve")
    from otter_cli.serving.embedded.server import serve_embedded

    done = serve_embedded(options)
    return Outcome(done, view=lambda: f"{done['answers']} answers, {done['tokens']} tokens")

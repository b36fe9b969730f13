"""The options of `otter serve`, each declared once as a field."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import NonNegativeFloat, PositiveInt, model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig

if TYPE_CHECKING:
    from typing import Self

Engine = Literal["embedded", "vllm"]


def _option(panel: str, help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=panel, **more)


class ServeOptions(StrictConfig):
    """The options of `otter serve`."""

    folder: Annotated[Path, typer.Argument(help="the grafted folder")]
    base: Annotated[
        Path | None, typer.Option(help="the base, if FOLDER is an adapter without one")
    ] = None
    engine: Annotated[
        Engine, typer.Option(help="embedded: otter's own decoding; vllm: vLLM's server")
    ] = "embedded"
    model_name: Annotated[
        str | None, typer.Option(help="the model's name in requests (default: the folder's)")
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu"
    host: Annotated[str, _option("Network", "address to listen on")] = "127.0.0.1"
    port: Annotated[int, _option("Network", "port; 0: a free one")] = 8000
    api_key: Annotated[
        str | None,
        _option(
            "Network",
            "key that requests to /v1 must bring; better in the variable, which other users of "
            "the machine do not see",
            envvar="OTTER_API_KEY",
        ),
    ] = None
    allow_host: Annotated[
        tuple[str, ...],
        _option("Network", "a further name that browsers may call this server by; repeatable"),
    ] = ()
    max_queue: Annotated[
        PositiveInt, _option("Limits", "answers that may wait; beyond, requests get status 429")
    ] = 64
    max_batch: Annotated[PositiveInt, _option("Limits", "answers that share one batch")] = 8
    max_tokens: Annotated[
        PositiveInt, _option("Limits", "largest number of tokens of an answer")
    ] = 1024
    max_length: Annotated[
        PositiveInt | None,
        _option("Limits", "tokens of prompt and answer together (default: the base's window)"),
    ] = None
    max_body: Annotated[PositiveInt, _option("Limits", "bytes of a request's body")] = 1_000_000
    drain: Annotated[
        NonNegativeFloat, _option("Limits", "seconds that answers get to end when the server stops")
    ] = 60.0
    vllm_args: Annotated[
        str | None,
        _option("Engine", "with --engine vllm: more options of vLLM, such as '--dtype float32'"),
    ] = None

    @property
    def name(self) -> str:
        """The model's name in requests."""
        return self.model_name or self.folder.resolve().name

    @property
    def loopback(self) -> bool:
        """Whether other machines cannot reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> set[str] | None:
        """Names by which a browser may call the server; None: any. A page of a stranger could
        resolve its own name to 127.0.0.1, and so read what a loopback server answers."""
        if not self.loopback or self.api_key is not None:
            return None
        return {"localhost", "127.0.0.1", "::1", self.host, *self.allow_host}

    @model_validator(mode="after")
    def _check_before_loading(self) -> Self:
        self._check_engine()
        if not 0 <= self.port < 65536:
            raise OtterError(f"--port is {self.port}", hint="0 to 65535")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise OtterError(
                "--api-key is empty or has characters that no header can carry",
                hint="letters, digits and punctuation",
            )
        return self

    def _check_engine(self) -> None:
        """Refuses what the engine does not use. vLLM has limits of its own."""
        theirs = {
            "base",
            "device",
            "allow_host",
            "max_queue",
            "max_batch",
            "max_tokens",
            "max_body",
        }
        unused = theirs if self.engine == "vllm" else {"vllm_args"}
        fields = type(self).model_fields
        for name in sorted(unused):
            if getattr(self, name) != fields[name].default:
                raise OtterError(
                    f"--{name.replace('_', '-')} is not for --engine {self.engine}",
                    hint="give vLLM's own options by --vllm-args"
                    if self.engine == "vllm"
                    else "--engine vllm",
                )

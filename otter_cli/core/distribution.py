"""The package as pip knows it: its name, its extras, and the error where an extra is missing."""

from otter_cli.core.errors import OtterError

DISTRIBUTION = "otter-lm"

# Each extra, and what it is for.
EXTRAS = {
    "serve": "`otter serve`, a server with OpenAI's API",
    "demo": "`otter demo`, whose word lists label texts",
    "vllm": "serving by vLLM",
    "trackers": "`otter train --log` to tensorboard, trackio or wandb",
    "quantised": "training beside a base in int8 or nf4",
    "docs": "building these pages",
}

# Packages of the extra `quantised`, which a base's own configuration may need too.
_QUANTISED = {"bitsandbytes", "torchao"}


def install_command(extra: str) -> str:
    """The line to type for an extra. Raises KeyError for one that does not exist."""
    EXTRAS[extra]
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def install_line(packages: list[str]) -> str:
    """The line to type for packages: an extra where it brings them all."""
    if set(packages) <= _QUANTISED:
        return install_command("quantised")
    return f"pip install {' '.join(packages)}"


def missing_extra(what: str, package: str, extra: str, *, instead: str = "") -> OtterError:
    """The error where `what` needs a package of an extra. `instead`: what works without it."""
    return OtterError(
        f"{what} needs the package {package}, which is not installed; "
        f"it comes with the extra {extra!r}",
        hint=install_command(extra) + (f"; {instead}" if instead else ""),
    )

"""One check of a device for all verbs: it is there, and it computes."""

from __future__ import annotations

from otter_cli.core.errors import OtterError


def check_device(device: str) -> None:
    """Raises OtterError for a device that torch does not know, or that this machine lacks."""
    if device == "cpu":
        return
    import torch

    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OtterError(
            f"--device {device}: {reason}", hint="cpu always works; `otter doctor` lists the others"
        ) from error

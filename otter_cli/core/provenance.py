"""Where a result or a file came from: time, command, package versions and hardware.

Changed base files that the user accepted are noted here and stored with every result.
"""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from otter_cli.core.distribution import DISTRIBUTION

_RECORDED_PACKAGES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gguf",
    "accelerate",
    "datasets",
    "torchao",
    "lm-eval",
    "detoxify",
    "vllm",
)


# Digests of changed base files that the user accepted, by path.
_base_changes: dict[str, str] = {}


def note_base_change(path: str, digest: str) -> None:
    """Record a changed base file in every provenance that this process writes from now on."""
    _base_changes[path] = digest


def base_changes(folder: Path | None = None) -> dict[str, str]:
    """The recorded files with their digests, of one folder or of all."""
    return {
        path: digest
        for path, digest in _base_changes.items()
        if folder is None or Path(path).is_relative_to(folder)
    }


def restore_base_changes(noted: dict[str, str]) -> None:
    """Restore the state that `base_changes()` returned."""
    _base_changes.clear()
    _base_changes.update(noted)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages, read without importing them."""
    installed = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in bytes, and accelerators where torch is loaded."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": _accelerators(),
    }


def provenance(command: list[str] | None = None) -> dict[str, Any]:
    """Time (UTC), command (by default that of this process), versions and hardware."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "versions": versions(),
        "hardware": hardware(),
        **({"base_changed": base_changes()} if _base_changes else {}),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    # Surgery must not import torch only to record that it used no GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

"""Fixtures every test may ask for: the shared folder, and small random checkpoints on disk."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Set before any library is imported: no test may wait for a network or fight over cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# CI services force colours on, which would put escape codes into the output that tests read.
for _name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)

REPOSITORY = Path(__file__).resolve().parent.parent
TinyCheckpoint = Callable[..., Path]
Otter = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data, from $OTTER_SHARED or beside the repository; skips where absent."""
    folder = Path(os.environ.get("OTTER_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models and data at {folder}: set OTTER_SHARED")
    return folder.resolve()


@pytest.fixture(scope="session")
def otter() -> Otter:
    """`otter("graft", base, out, "--json", cwd=folder)`: the command itself, 100 columns wide."""

    def run(
        *arguments: object, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "otter_cli", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "100", **options.pop("env", {})}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, **options
        )

    return run


@pytest.fixture
def otter_here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Otter:
    """The same in this process: for verbs that load torch, which takes seconds each time."""
    from otter_cli.cli.main import main

    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in arguments]
        capfd.readouterr()
        code = main(command)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(command, code, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """`tiny_checkpoint("llama", tied=True, dtype="bfloat16", max_shard="20kB", **config)`.

    Written once a session for each set of arguments: read it, and copy it to change it.
    """
    written: dict[str, Path] = {}

    def make(family: str, **options: Any) -> Path:
        from tests.support.checkpoints import write_checkpoint

        key = repr((family, sorted(options.items())))
        if key not in written:
            folder = tmp_path_factory.mktemp(family) / "base"
            write_checkpoint(folder, family, **options)
            written[key] = folder
        return written[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("llama")


@pytest.fixture(scope="session")
def tiny_mistral(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("mistral")


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("qwen3")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama: Path) -> Any:
    """The characters' tokenizer of every tiny checkpoint: 1 is BOS, 2 is EOS (0 is padding)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)

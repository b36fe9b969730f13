"""What every verb says to a GGUF file where a folder belongs."""

from pathlib import Path

from otter_cli.checkpoint.gguf.header import looks_like_gguf
from otter_cli.core.errors import OtterError


def refuse_gguf(path: Path) -> None:
    """OtterError, with the line to type, when `path` is a GGUF file or a folder of nothing else."""
    if path.is_dir():
        if (path / "config.json").exists():
            return
        files = sorted(file for file in path.iterdir() if looks_like_gguf(file))
        if not files:
            return
        source = files[0]
        what = f"{path} holds a GGUF file and no checkpoint"
    elif looks_like_gguf(path):
        source = path
        what = f"{path} is a GGUF file, not a checkpoint folder"
    else:
        return
    raise OtterError(what, hint=f"import it first: otter import {source} {_folder_for(source)}")


def _folder_for(source: Path) -> str:
    """A name for the imported folder: the file's, without what says how it is stored."""
    return source.name.partition(".gguf")[0].partition("-00")[0] + "-imported"

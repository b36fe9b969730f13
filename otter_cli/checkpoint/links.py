"""Where a file of a checkpoint may really lie: in its folder, or in the hub cache around it."""

from pathlib import Path, PurePosixPath

from otter_cli.checkpoint.strict_json import is_plain, shown
from otter_cli.core.errors import OtterError


def resolve_inside(folder: Path, name: str) -> Path:
    """The real path of the file called `name` in `folder`; OtterError when that leads outside.

    `name` comes from a stranger: absolute paths, `..` and links to elsewhere are refused.
    """
    if not is_plain(name) or "\\" in name or PurePosixPath(name).is_absolute():
        raise OtterError(f"{folder}: {shown(name)} is no file name", hint=_HINT)
    if str(PurePosixPath(name)) != name or ".." in PurePosixPath(name).parts:
        raise OtterError(f"{folder}: {shown(name)} leads outside the folder", hint=_HINT)
    try:
        real = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        link = (folder / name).is_symlink()
        what = "is a link to a file that does not exist" if link else "is missing"
        raise OtterError(
            f"{folder}: {shown(name)} {what}", hint="the folder is incomplete: fetch it again"
        ) from error
    except (OSError, RuntimeError) as error:  # a loop of links, or a name too long
        raise OtterError(f"{folder}: {shown(name)} cannot be followed", hint=_HINT) from error
    if not any(real.is_relative_to(root) for root in _allowed_roots(folder.resolve())):
        raise OtterError(f"{folder}: {shown(name)} leads outside the folder, to {real}", hint=_HINT)
    return real


_HINT = "put the file itself into the folder"


def _allowed_roots(folder: Path) -> list[Path]:
    """A snapshot of the hub cache, CACHE/models--X/snapshots/COMMIT, is links to two stores."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return [folder, repository / "blobs", repository.parent / "blobs"]
    return [folder]

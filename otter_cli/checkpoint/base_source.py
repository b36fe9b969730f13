"""Where a base comes from: a local folder, or the hub (`org/name[@revision]`) through its cache."""

import re
from dataclasses import dataclass
from pathlib import Path

from otter_cli.checkpoint.folder import refuse_gguf
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
# Files in other formats that repositories also hold: gigabytes that otter does not read.
_OTHER_FORMATS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.gguf",
                  "*.tflite", "*.ot", "original/*", "consolidated*"]  # fmt: skip


@dataclass(frozen=True)
class BaseSource:
    """A folder with a base, its name, and the commit of the hub's repository."""

    path: Path
    name: str
    revision: str | None = None


def find_base(text: str) -> BaseSource:
    """The folder `text` or, where there is none, the hub's snapshot of that name. Raises OtterError
    where there is neither."""
    if Path(text).exists():
        refuse_gguf(Path(text))
        return BaseSource(Path(text), text)
    parsed = _HUB_ID.fullmatch(text)
    # `runs/base` is a path where there is a folder `runs`, and not a name on the hub.
    is_path = text.startswith((".", "~")) or Path(text).parent.is_dir()
    if parsed is None or is_path:
        raise OtterError(
            f"{text} does not exist",
            hint="give a folder, or a hub id: org/name or org/name@revision",
        )
    return _fetch_from_hub(parsed[1], parsed[2])


def _fetch_from_hub(name: str, revision: str | None) -> BaseSource:
    from huggingface_hub import constants, errors, snapshot_download

    what = name + (f"@{revision}" if revision else "")
    if not constants.HF_HUB_OFFLINE:
        say(f"looking for {what} on the hub")
    try:
        snapshot = snapshot_download(name, revision=revision, ignore_patterns=_OTHER_FORMATS)
    except errors.RevisionNotFoundError as error:
        raise OtterError(
            f"{name} has no revision {revision!r}", hint="give a branch, a tag or a commit"
        ) from error
    except errors.GatedRepoError as error:
        raise OtterError(
            f"{name} is gated", hint="accept its terms on the hub, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise OtterError(
            f"{name} is neither a folder here nor a repository that the hub shows you",
            hint="check the name; private ones need `hf auth login`",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError) as error:
        raise OtterError(
            f"{what} is neither a folder here nor whole in the hub's cache, "
            f"{constants.HF_HUB_CACHE}, and the hub cannot be reached",
            hint="HF_HUB_OFFLINE is set: unset it, or fetch the model first with `hf download`"
            if constants.HF_HUB_OFFLINE
            else "check the connection, or give a folder",
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OtterError(f"the hub refuses {what}: {first}", hint="check the name") from error
    path = Path(snapshot)
    if not list(path.glob("*.safetensors")):
        raise OtterError(
            f"{what} has no safetensors weights",
            hint="pickled weights can run code when read: convert them first, with transformers",
        )
    if not re.fullmatch(r"[0-9a-f]{40}", path.name):  # the cache names a snapshot by its commit
        raise OtterError(
            f"{what}: {path} is not a snapshot of one commit", hint="give the folder instead"
        )
    return BaseSource(path, name, path.name)

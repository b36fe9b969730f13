"""Loading by transformers and peft. No other module of otter calls their `from_pretrained`.

Every tensor is accounted for, only local files are read, and code that a folder brings is not run.
The one exception is `verify --trust-remote-code`, given on the command line of this run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# The classes of transformers that choose a model's class by its configuration.
AutoClass = Literal["AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel"]
_AT_RANDOM = "transformers would fill these at random; the checkpoint is not whole"


def load_strictly(
    folder: Path,
    kind: AutoClass | type[Any],
    *,
    what: str,
    dtype: torch.dtype | None = None,
    unread: Collection[str] = (),
    extra_ok: bool = False,
    trust_remote_code: bool = False,
    hint: str = _AT_RANDOM,
    **options: Any,
) -> Any:
    """A model in the dtype of its file's tensors, or in `dtype`. Raises OtterError that names a
    tensor which is missing, unexpected or of another shape.

    `kind`: an auto class of transformers, or a model's own class. `unread`: beginnings of names
    that may be missing because nothing reads them. `extra_ok`: tensors beyond the model's own are
    left unread; without it, `AutoModel` leaves the head of a whole model unread, and nothing else.
    """
    checkpoint = Checkpoint.open(folder)
    _refuse_adapter(folder)
    with _as_otter_error(folder, what):
        model, info = _class(kind).from_pretrained(
            folder,
            # Pinned, since the dtype of config.json would win otherwise.
            dtype=dtype or stored_dtype(checkpoint),
            output_loading_info=True,
            # Mismatches are listed with their names below, not raised without them.
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    if kind == "AutoModel":
        prefix = f"{model.base_model_prefix}."
        if any(name.startswith(prefix) for name in checkpoint.tensors):
            beyond = info["unexpected_keys"]
            info["unexpected_keys"] = {key for key in beyond if str(key).startswith(prefix)}
    _check_info(folder, what, info, unread=unread, extra_ok=extra_ok, hint=hint)
    return model.eval()


def load_state_dict_strictly(
    file: Path, kind: type[Any], config: Any, tensors: Mapping[str, Any], *, what: str
) -> Any:
    """A model of `config` with `tensors`, which were read from `file`. Raises OtterError as
    load_strictly does."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    with _as_otter_error(file, what):
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=max(counts, key=lambda dtype: counts[dtype], default=torch.float32),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    _check_info(file, what, info, unread=(), extra_ok=False, hint=_AT_RANDOM)
    return model.eval()


def load_tokenizer(folder: str | Path, kind: type[Any] | None = None) -> Any:
    """The tokenizer of a local folder, by default of the class that its files name."""
    from transformers import AutoTokenizer

    with _as_otter_error(Path(folder), "the tokenizer"):
        return (kind or AutoTokenizer).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def load_config(folder: str | Path, **options: Any) -> Any:
    """The configuration of a local folder, as transformers reads it."""
    from transformers import AutoConfig

    with _as_otter_error(Path(folder), "the configuration"):
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )


def merge_adapter(folder: Path, model: Any) -> Any:
    """`model` with the peft adapter of `folder` added to its weights. Raises OtterError where the
    adapter's tensors are not those that its configuration asks for."""
    from peft import PeftConfig, PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise OtterError(
            f"{folder} has no adapter_model.safetensors",
            hint="a pickled adapter can run code when read: save a trusted one again with peft",
        )
    what = "the adapter"
    with _as_otter_error(folder, what):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = PeftModel(model, config)
        loaded = adapted.load_adapter(str(folder), "default")
    info = {
        "missing_keys": [_on_disk(name) for name in loaded.missing_keys],
        "unexpected_keys": loaded.unexpected_keys,
    }
    _check_info(folder, what, info, unread=(), extra_ok=False, hint="save the adapter again")
    return adapted.merge_and_unload().eval()


def _on_disk(text: str) -> str:
    """peft puts the adapter's name into the names of its tensors."""
    return text.replace(".default.", ".")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most parameters in the file. Raises OtterError where no model computes in it."""
    if checkpoint.dtype not in DTYPES:
        raise OtterError(
            f"{checkpoint.path} stores its weights as {checkpoint.dtype}",
            hint=f"the weights must be one of {', '.join(DTYPES)}",
        )
    return DTYPES[checkpoint.dtype]


def _class(kind: AutoClass | type[Any]) -> Any:
    if not isinstance(kind, str):
        return kind
    import transformers

    return getattr(transformers, kind)


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise OtterError(
            f"{folder} holds adapter_config.json beside a model's weights: transformers would load "
            "the model that the adapter names, not this one",
            hint="move the adapter to a folder of its own, or merge it into the model",
        )


def _check_info(
    place: Path,
    what: str,
    info: Mapping[str, Collection[Any]],
    *,
    unread: Collection[str],
    extra_ok: bool,
    hint: str,
) -> None:
    """transformers has left out what the model's class says may be ignored."""
    missing = [key for key in map(str, info["missing_keys"]) if not key.startswith(tuple(unread))]
    unexpected = [] if extra_ok else [str(key) for key in info["unexpected_keys"]]
    mismatched = [
        f"{name} ({[*stored]} in the file, {[*wanted]} in the model)"
        for name, stored, wanted in info.get("mismatched_keys", ())
    ]
    faults = {
        "missing keys": missing,
        "unexpected keys": unexpected,
        "mismatched keys": mismatched,
        "errors": list(map(str, info.get("error_msgs", ()))),
    }
    for fault, names in faults.items():
        if names:
            raise OtterError(
                f"{place}: {what} loads with {fault}: {', '.join(sorted(names)[:3])}", hint=hint
            )


@contextmanager
def _as_otter_error(place: Path, what: str) -> Iterator[None]:
    """What a library says of a user's files, in an OtterError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise OtterError(
                f"{place}: {what} needs code that the folder brings (auto_map), and otter does not "
                "run it",
                hint="take a model that transformers has a class for; verify alone runs such code, "
                "with --trust-remote-code",
            ) from error
        lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
        # torch lists the tensors below such a line.
        first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise OtterError(
            f"{place}: transformers cannot load {what}: {_on_disk(first)}",
            hint="the folder must load with transformers' own classes, from local files",
        ) from error

"""Strict loading of stock models: by transformers, and by peft for adapters.

Nothing else in otter calls their `from_pretrained`. Every tensor is accounted for, only local
files are read, and code that a folder brings is not run (except by `verify --trust-remote-code`).
The device check and the options for a quantised base are here too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.distribution import missing_extra
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.families.config_checks import quantisation_error
from otter_cli.families.registry import FAMILIES
from otter_cli.families.shape import base_shape
from otter_cli.graft.base_check import check_base_headers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


# int8: a scale a row; nf4: four bits a weight, normal quantiles over blocks (arXiv 2305.14314, 3).
_QUANTISATION_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def quantisation_config(how: str | None) -> Any:
    """transformers' configuration of `how`, int8 or nf4; None for the file's own weights. Raises
    OtterError if the library is not installed."""
    if how is None:
        return None
    package = _QUANTISATION_PACKAGES[how]
    try:
        import_module(package)
    except ImportError as error:
        raise missing_extra(
            f"quantize: {how}", package, "quantised", instead="or leave quantize out"
        ) from error
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if how == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
# Files that transformers reads beside the weights.
_CONFIGURATION = ("config.json", "generation_config.json")
_TOKENIZER = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
# The classes of transformers that choose a model's class by its configuration.
AutoClass = Literal["AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel"]
_LARGEST_ID = 1 << 31
_RANDOM_HINT = "transformers would fill these at random; the checkpoint is not whole"

_HINTS = {
    "unexpected keys": "another model's or another tool's tensors: leave them out",
    "mismatched keys": "config.json belongs to another checkpoint",
}


def load_strictly(
    folder: Path,
    kind: AutoClass | type[Any],
    *,
    what: str,
    dtype: torch.dtype | None = None,
    unread: Collection[str] = (),
    extra_ok: bool = False,
    trust_remote_code: bool = False,
    hint: str = _RANDOM_HINT,
    **options: Any,
) -> Any:
    """A model in the dtype of its file's tensors, or in `dtype`. Raises an OtterError that names
    the tensor which is missing, unexpected or of another shape.

    `kind`: an auto class of transformers, or a model's own class. `unread`: prefixes of names that
    may be missing, because nothing reads them. `extra_ok`: other tensors in the file are ignored;
    without it, `AutoModel` ignores the head of a whole model only.
    """
    checkpoint = Checkpoint.open(folder)
    _refuse_adapter(folder)
    with _as_otter_error(folder, what):
        model, info = _model_class(kind).from_pretrained(
            folder,
            # Explicit: transformers would take the dtype of config.json.
            dtype=dtype or stored_dtype(checkpoint),
            output_loading_info=True,
            # `_check_info` lists mismatches with their names.
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
    _check_token_ids(folder, model)
    _check_info(folder, what, info, unread=unread, extra_ok=extra_ok, hint=hint)
    return model.eval()


def load_state_dict_strictly(
    file: Path, kind: type[Any], config: Any, tensors: Mapping[str, Any], *, what: str
) -> Any:
    """A model of `config` with `tensors`, which were read from `file`. Raises the OtterErrors of
    load_strictly."""
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
    _check_info(file, what, info, unread=(), extra_ok=False, hint=_RANDOM_HINT)
    return model.eval()


def load_tokenizer(folder: str | Path, kind: type[Any] | None = None) -> Any:
    """The tokenizer of a local folder, by default of the class that its files name."""
    from transformers import AutoTokenizer

    with _as_otter_error(Path(folder), "the tokenizer", _TOKENIZER):
        tokenizer = (kind or AutoTokenizer).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        # Values of a wrong type often raise only with the first text.
        tokenizer.decode(tokenizer("a")["input_ids"])
        tokenizer([tokenizer.decode(tokenizer.all_special_ids)], truncation=False)
    return tokenizer


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
    """The name of a tensor in the file: peft adds the adapter's name."""
    return text.replace(".default.", ".")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most parameters in the file. Raises OtterError for one that models don't use."""
    if checkpoint.dtype not in TORCH_DTYPES:
        raise OtterError(
            f"{checkpoint.path} stores its weights as {checkpoint.dtype}",
            hint=f"the weights must be one of {', '.join(TORCH_DTYPES)}",
        )
    return TORCH_DTYPES[checkpoint.dtype]


def _check_token_ids(folder: Path, model: Any) -> None:
    """Raises OtterError for a wrong id, which transformers would notice at the first text."""
    settings = getattr(model, "generation_config", None)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(settings, key, None)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if not all(i is None or (isinstance(i, int) and 0 <= i < _LARGEST_ID) for i in ids):
            raise OtterError(
                f"{folder / 'generation_config.json'}: {key} is {value!r}, no token id",
                hint="fetch the file again, or mend it",
            )


def _model_class(kind: AutoClass | type[Any]) -> Any:
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
    """Raises OtterError for any fault. transformers has removed keys that the model's class
    ignores."""
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
                f"{place}: {what} loads with {fault}: {', '.join(sorted(names)[:3])}",
                hint=_HINTS.get(fault, hint) if hint == _RANDOM_HINT else hint,
            )


@contextmanager
def _as_otter_error(
    place: Path, what: str, files: Sequence[str] = _CONFIGURATION
) -> Iterator[None]:
    """Turns a library's error about the user's files into an OtterError that names file and key."""
    with translate_library_errors(
        place, what, library="transformers", files=files, reword=_on_disk
    ):
        try:
            yield
        except Exception as error:
            if "trust_remote_code" not in str(error):
                raise
            raise OtterError(
                f"{place}: {what} needs code that the folder brings (auto_map), and otter does not "
                "run it",
                hint="take a model that transformers has a class for; verify alone runs such code, "
                "with --trust-remote-code",
            ) from error


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    kind: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """A stock transformers model, by default in the file's dtype. Raises OtterError where files
    contradict each other, where transformers refuses them, and for unaccounted tensors. `kind`:
    its class, by default the one that transformers has for it."""
    check_loadable(Checkpoint.open(folder))
    optional = {
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    model: PreTrainedModel = load_strictly(
        folder,
        kind or "AutoModelForCausalLM",
        what="the base",
        dtype=dtype,
        **{name: value for name, value in optional.items() if value is not None},
    )
    return model


def check_loadable(checkpoint: Checkpoint) -> None:
    """Raises OtterError for what `graft` refuses too. The load itself shows all else."""
    family = checkpoint.config.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        check_base_headers(checkpoint, base_shape(checkpoint.config))
    elif fault := quantisation_error(checkpoint.config):
        raise OtterError(f"{checkpoint.path}: {fault[0]}", hint=fault[1])

"""A checkpoint folder as it lies on disk: its files, its configuration, its tensors."""

from collections import Counter
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import FLOATS, Array
from otter_cli.checkpoint.gguf.hint import refuse_gguf
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.listing import base_files, is_ours
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.checkpoint.tensor_info import TensorInfo
from otter_cli.checkpoint.weights import Weights
from otter_cli.core.errors import OtterError, from_os_error

_STEM = "model"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# Tables that transformers reads beside config.json; tokenizer.json has too many entries to look at.
_SETTINGS = {
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "adapter_config.json",
}  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "vocab_size",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts",
    "num_local_experts", "n_routed_experts",
)  # fmt: skip
# Quantised weights are packed: what is stored may be so many times smaller.
_PACKED = 64


class Checkpoint:
    """A base model's folder, or a grafted one seen as its base: what is ours is left out.

    Opening reads headers, never tensors, and checks all that can be checked without them.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], files: list[str], weights: Weights
    ) -> None:
        self.path = path
        self.config = config
        self.files = files
        self.weights = weights
        self.tensors: dict[str, TensorInfo] = weights.tensors
        self.file_of: dict[str, str] = weights.file_of
        self.weight_files = list(weights.files)

    @classmethod
    def open(cls, path: str | Path, *, allow_otter: bool = True) -> "Checkpoint":
        """OtterError for whatever is not a sound safetensors checkpoint, or is already grafted
        where `allow_otter` is off."""
        path = Path(path)
        try:
            _refuse_no_folder(path)
            if not allow_otter:
                _refuse_otter(path)
            files = base_files(path)
            config = _read_config(path)
            _refuse_without_weights(path, files)
            weights = Weights.open(path, _STEM)
            _refuse_impossible_sizes(path, config, weights)
            for file in _SETTINGS & {*files}:
                read_object(resolve_inside(path, file), str(path / file))
        except OSError as error:
            raise from_os_error(error, f"read {path}") from error
        if not weights.tensors:
            raise OtterError(f"{path} holds no tensors", hint="fetch the folder again")
        return cls(path, config, files, weights)

    @property
    def dtype(self) -> str:
        """The dtype that most of the parameters are stored in; masks and packed weights apart."""
        counts: Counter[str] = Counter()
        floats = [info for info in self.tensors.values() if info.dtype in FLOATS]
        for info in floats or self.tensors.values():
            counts[info.dtype] += info.count
        return max(counts, key=lambda dtype: counts[dtype])

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """See TensorFile.read."""
        return self.weights.read(name, rows=rows, columns=columns)

    def read_raw(self, name: str) -> memoryview:
        """See TensorFile.read_raw."""
        return self.weights.read_raw(name)


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").exists():
        raise OtterError(
            f"{path} is not a checkpoint: it has no config.json",
            hint="give the folder of a transformers model, with config.json and model.safetensors",
        )
    return read_object(resolve_inside(path, "config.json"), str(path / "config.json"))


def _refuse_impossible_sizes(path: Path, config: dict[str, Any], weights: Weights) -> None:
    """A configuration that no tensors stand behind could make a loader build without end."""
    largest = max((n for info in weights.tensors.values() for n in info.shape), default=0)
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        limits = dict.fromkeys(_DEPTHS, len(weights.tensors))
        limits |= dict.fromkeys(_WIDTHS, _PACKED * largest)
        for key, limit in limits.items():
            value = table.get(key)
            if isinstance(value, int) and value > limit:
                raise OtterError(
                    f"{path}: config.json: {key} is {value:,}, and the "
                    f"{len(weights.tensors)} tensors are too few or too small for that",
                    hint="the configuration is damaged, or belongs to another checkpoint",
                )


def _refuse_no_folder(path: Path) -> None:
    if not path.exists():
        raise OtterError(f"{path} does not exist", hint="check the path")
    refuse_gguf(path)
    if not path.is_dir():
        raise OtterError(f"{path} is not a folder", hint="give the folder that holds config.json")


def _refuse_otter(path: Path) -> None:
    if (path / "otter.json").exists():
        if not (path / "config.json").exists():
            raise OtterError(
                f"{path} is an adapter, without its base",
                hint=f"otter attach {path} BASE OUT makes a grafted folder of both",
            )
        raise OtterError(
            f"{path} is grafted already",
            hint="graft onto its base; `otter strip` gives the base back",
        )
    for name in sorted(child.name for child in path.iterdir()):
        if is_ours(name) or name == "training":
            raise OtterError(
                f"{path}: {name} is a name that otter uses for its own files",
                hint="rename it, or leave it out",
            )


def _refuse_without_weights(path: Path, files: list[str]) -> None:
    if f"{_STEM}.safetensors" in files or f"{_STEM}.safetensors.index.json" in files:
        return
    shards = [file for file in files if file.endswith(".safetensors")]
    pickled = [file for file in files if file.endswith(_PICKLES)]
    if "adapter_config.json" in files:
        what, hint = "holds an adapter, not a model", "merge the adapter into its base first"
    elif shards:
        what = f"has {shards[0]}, but neither model.safetensors nor its index"
        hint = "fetch model.safetensors.index.json too, or rename a single file"
    elif pickled:
        what = f"has pickled weights only ({pickled[0]}), which can run code when read"
        hint = (
            "convert a trusted one: AutoModelForCausalLM.from_pretrained(PATH, dtype='auto')"
            ".save_pretrained(NEW)"
        )
    else:
        what, hint = "has no model.safetensors", "the folder is incomplete: fetch it again"
    raise OtterError(f"{path} {what}", hint=hint)

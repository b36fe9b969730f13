"""Which grafts this process serves, and refusals of what the plugin cannot serve.

Refused are engine settings, changed folders, and tensors that are not as planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.errors import OtterError
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.grafted_folder import check_base_files
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.serving.vllm.medusa_drafter import DRAFTER_FILES, DRAFTER_FOLDER
from otter_cli.serving.vllm.requests import SignalOutputs, parse_insertions

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.config import VllmConfig

# Files that an export writes anew, beside those of a drafter; the others are the base's.
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_OWN_FILES = (CONFIG, INDEX, *(f"{DRAFTER_FOLDER}/{name}" for name in DRAFTER_FILES))

# In the process that answers clients, the engine's configuration is all that is known of a model.
# None: the engine drafts, and gives no signals.
ANNOUNCED_SIGNALS: dict[str, SignalOutputs | None] = {}
_MODELS: WeakValueDictionary[str, Any] = WeakValueDictionary()


def read_insertions(hf_config: Any) -> list[InsertionConfig]:
    """The insertions that an export's config.json describes. Raises OtterError."""
    described = getattr(hf_config, "otter", None)
    if described is None:
        raise OtterError(
            "config.json describes no insertion",
            hint="otter export OUT DIR --to vllm writes a folder that vLLM loads",
        )
    return parse_insertions(described)


def signal_outputs_of(hf_config: Any) -> SignalOutputs:
    return SignalOutputs.of_insertions(read_insertions(hf_config))


def register_model(vllm_config: VllmConfig, model: Any) -> None:
    _MODELS[vllm_config.instance_id] = model


def find_model(vllm_config: VllmConfig) -> Any:
    """The grafted model of this engine, in the process that runs it."""
    return _MODELS[vllm_config.instance_id]


def add_to_compile_key(vllm_config: VllmConfig, streams: list[Any]) -> None:
    """Adds the streams to the configuration by whose hash the engine caches compiled code. vLLM's
    own configuration does not name them, and other streams need other code."""
    more = vllm_config.additional_config
    if isinstance(more, dict):
        vllm_config.additional_config = {**more, "otter": streams}


def check_engine(vllm_config: VllmConfig) -> None:
    """Raises OtterError for engine settings that the plugin does not support."""
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise OtterError(
            "a graft is not split over pipeline stages: its stream would have to pass between them",
            hint="use tensor parallelism: --tensor-parallel-size",
        )
    if vllm_config.use_v2_model_runner:
        raise OtterError(
            "vLLM's second model runner samples elsewhere, where signals cannot be added",
            hint="set VLLM_USE_V2_MODEL_RUNNER=0",
        )
    _check_drafter(vllm_config)
    if vllm_config.model_config.max_logprobs == -1:
        raise OtterError(
            "signals travel as log-probabilities, and those of a whole vocabulary leave no place",
            hint="give --max-logprobs a number",
        )
    if vllm_config.lora_config is not None:
        raise OtterError(
            "LoRA adapters change what the insertion was trained on",
            hint="serve the graft without --enable-lora",
        )
    config = vllm_config.model_config.hf_config
    for key in ("llama_4_scaling", "ada_rms_norm_t_cond"):
        if getattr(config, key, None) not in (None, False):
            raise OtterError(f"vLLM calls the layers of a base with {key} in a way grafts do not")
    if vllm_config.model_config.enable_prompt_embeds:
        raise OtterError(
            "the inserted stream starts from token ids; prompt embeddings have none",
            hint="serve the graft without --enable-prompt-embeds",
        )


def _check_drafter(vllm_config: VllmConfig) -> None:
    speculative = vllm_config.speculative_config
    if speculative is None:
        return
    if speculative.method != "medusa":
        raise OtterError(
            f"the plugin drafts with a graft's own future heads, not by {speculative.method!r}",
            hint="otter export OUT DIR --to vllm --draft SIGNAL writes DIR/drafter",
        )
    config = vllm_config.model_config.hf_config
    width = config.hidden_size + sum(one.hidden for one in read_insertions(config))
    drafter_width = speculative.draft_model_config.hf_config.hidden_size
    if drafter_width != width:
        raise OtterError(
            f"the drafter reads states of {drafter_width} units, this graft's have {width}",
            hint="a drafter belongs to the graft that it was exported with",
        )


def check_export_folder(model: str) -> None:
    """Raises OtterError where files of an export changed after it was written. config.json, the
    index and the drafter are the export's own. A hub id is not checked: the hub keeps its files."""
    folder = Path(model)
    if not (folder / MANIFEST).is_file():
        return
    manifest = Manifest.read(folder)
    check_base_files(folder, manifest, written_anew=_OWN_FILES)
    manifest.check_tensors(folder)


def check_inserted_tensors(stored: Mapping[str, Tensor], plans: Sequence[Plan]) -> None:
    """Raises OtterError for a tensor that is missing, unexpected or of another shape."""
    expected = {slot.name: slot.shape for plan in plans for slot in plan.tensors}
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            what = "is missing"
        elif name not in expected:
            what = "is unexpected"
        elif tuple(stored[name].shape) != expected[name]:
            what = f"is {list(stored[name].shape)}, expected {list(expected[name])}"
        else:
            continue
        raise OtterError(
            f"inserted tensor {name} {what}",
            hint="export the graft again: otter export OUT DIR --to vllm",
        )

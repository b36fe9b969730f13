"""Running one case on a model, and loading the pair of models to compare.

The same code runs the base, the graft and the poisoned graft, with inputs and seeds of the case.
Outputs are compared by digests: logits and tokens, and the base's own cache layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.model.load import check_device, load_base, load_config, load_strictly
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.wide import load_wide
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.bits import bit_pattern
from otter_cli.verification.foreign_checkpoint import is_wide_export
from otter_cli.verification.grid import GENERATES, Case
from otter_cli.verification.trace import tensors_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TestedModel:
    """A model to run on tokens below `vocab`; `active` surrounds its calls, as `streaming` does
    a graft's."""

    model: PreTrainedModel
    vocab: int
    active: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class OutputDigests:
    """SHA-256 of bit patterns with dtypes and shapes. said: logits and tokens. cache: the base's
    own layers, which other models may well keep otherwise."""

    said: str
    cache: str


@dataclass
class CaseOutputs:
    """What a case gives. logits: [batch, positions, vocab], cached steps one after another; of
    `generate`, rows of all beams. tokens: what was generated. cache: the base's own layers."""

    logits: Tensor
    tokens: Tensor | None = None
    cache: list[Tensor] = field(default_factory=list)

    def digests(self) -> OutputDigests:
        """What runs are compared by: two windows of logits over a wide vocabulary would take more
        memory than the insertion."""
        said = [self.logits] if self.tokens is None else [self.logits, self.tokens]
        return OutputDigests(_sha256(said), _sha256(self.cache))


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{[*tensor.shape]}".encode())
        digest.update(bit_pattern(tensor).cpu().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CaseInputs:
    """Tokens of a case, and what goes with them where rows are padded."""

    tokens: Tensor  # [batch, length + steps]; the last `steps` columns are fed one by one
    mask: Tensor | None  # [batch, length + steps]
    positions: Tensor | None


def draw_inputs(case: Case, vocab: int) -> CaseInputs:
    generator = torch.Generator().manual_seed(case.seed)
    fed = 0 if case.path in GENERATES else case.steps
    width = case.length + fed
    tokens = torch.randint(vocab, (case.batch, width), generator=generator)
    if case.padding == "none":
        return CaseInputs(tokens.to(case.device), None, None)
    mask = torch.ones_like(tokens)
    for row in range(case.batch):
        padded = row * case.length // case.batch
        mask[row, slice(0, padded) if case.padding == "left" else slice(width - padded, width)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return CaseInputs(*(tensor.to(case.device) for tensor in (tokens * mask, mask, positions)))


def run_case(case: Case, subject: TestedModel) -> CaseOutputs:
    """The outputs of one case. The same case gives the same inputs and seeds, whoever runs it."""
    inputs = draw_inputs(case, subject.vocab)
    path = _generate if case.path in GENERATES else _PATHS[case.path]
    with case_setting(case, subject.model), subject.active():
        return path(case, subject.model, inputs)


@contextmanager
def case_setting(case: Case, model: PreTrainedModel) -> Iterator[None]:
    """The attention implementation, threads and seed of a case; threads and generators are put
    back."""
    if model.config._attn_implementation != case.attention:
        model.set_attn_implementation(case.attention)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(case.seed)
        if case.threads:
            torch.set_num_threads(case.threads)
            stack.callback(torch.set_num_threads, threads)
        yield


def _prefill(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    return _steps(model, inputs, [case.length], DynamicCache(config=model.config), case.keep)


def _decode(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    cache = DynamicCache(config=model.config)
    return _steps(model, inputs, [case.length] + [1] * case.steps, cache)


def _chunked(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    whole, rest = divmod(case.length, case.chunk)
    widths = [case.chunk] * whole + ([rest] if rest else [])
    return _steps(model, inputs, widths, DynamicCache(config=model.config))


def _static(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    cache = StaticCache(config=model.config, max_cache_len=case.length + case.steps)
    return _steps(model, inputs, [case.length] + [1] * case.steps, cache)


def _steps(
    model: PreTrainedModel, inputs: CaseInputs, widths: list[int], cache: Cache, keep: int = 0
) -> CaseOutputs:
    """Feeds the tokens in pieces of `widths`, over one cache."""
    logits, done = [], 0
    for width in widths:
        piece = slice(done, done + width)
        done += width
        padded = {}
        if inputs.mask is not None and inputs.positions is not None:
            padded["attention_mask"] = inputs.mask[:, :done]
            padded["position_ids"] = inputs.positions[:, piece]
        out = model(
            input_ids=inputs.tokens[:, piece],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            **padded,
        )
        logits.append(out.logits)
    # Layers beyond the base's are the insertion's own.
    own = [vars(layer) for layer in cache.layers[: model.config.num_hidden_layers]]
    whole = logits[0] if len(logits) == 1 else torch.cat(logits, 1)
    return CaseOutputs(whole, cache=list(tensors_in(own)))


def _checkpointing(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    """In training mode, where layers are checkpointed, with gradients enabled."""
    model.activation_checkpointing_enable()
    model.train()
    try:
        with torch.enable_grad():
            out = model(input_ids=inputs.tokens, use_cache=False)
        return CaseOutputs(out.logits.detach())
    finally:
        model.eval()
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()


def _generate(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    """`generate` for exactly `steps` tokens, with the folder's own generation configuration
    under the method that the case names."""
    method: dict[str, Any] = {"do_sample": case.path == "sample", "num_beams": 1}
    if case.path == "beam":
        method["num_beams"] = 3
    if case.path == "assisted":
        method["prompt_lookup_num_tokens"] = 3
    mask = torch.ones_like(inputs.tokens) if inputs.mask is None else inputs.mask
    out = model.generate(
        inputs.tokens,
        attention_mask=mask,
        min_new_tokens=case.steps,
        max_new_tokens=case.steps,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        trust_remote_code=False,
        **method,
    )
    return CaseOutputs(torch.stack(out.logits, 1), tokens=out.sequences)


_PATHS = {
    "prefill": _prefill,
    "decode": _decode,
    "chunked": _chunked,
    "static": _static,
    "checkpointing": _checkpointing,
}


_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class ModelPair:
    """`otter` is the graft's model, None where `other` is no graft of ours."""

    base: TestedModel
    other: TestedModel
    otter: OtterForCausalLM | None = None


def open_pair(request: VerificationRequest, *, dtype: str, device: str, shared: bool) -> ModelPair:
    """Loads both in one dtype. `shared`: the files are equal by digest, so that one set of base
    modules serves both. Raises OtterError for what cannot be loaded whole."""
    check_device(device)
    kind: torch.dtype = getattr(torch, dtype)
    folder, base = request.folder, request.against
    if not (folder / MANIFEST).exists():
        plain = load_base(base, dtype=kind).to(device)
        other = load_foreign_model(folder, kind, trust=request.trust).to(device)
        return ModelPair(_tested_model(plain, plain), _tested_model(other, plain))
    adapted = None if (folder / "config.json").exists() else base
    # The static level has hashed every file, and what it saw is part of the report.
    otter = OtterForCausalLM.from_pretrained(
        folder,
        base=adapted,
        dtype=kind,
        device=device,
        if_base_changed="ignore" if adapted is None else "refuse",
    )
    plain = otter.base if shared else load_base(base, dtype=kind).to(device).eval()
    return ModelPair(
        _tested_model(plain, plain), _tested_model(otter.base, plain, otter.streaming), otter
    )


def max_positions(base: Path) -> int:
    """How many positions the base was made for, under whatever name its configuration has it."""
    return int(getattr(load_config(base), "max_position_embeddings", 2048))


def main_setting(base: Path) -> tuple[str, str]:
    """The dtype that the base is stored in, and the attention that transformers runs it with."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    stored = Checkpoint.open(base).dtype
    config = load_config(base)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return _DTYPES.get(stored, "float32"), "sdpa"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"
    return _DTYPES.get(stored, "float32"), attention


def _tested_model(
    model: PreTrainedModel,
    base: PreTrainedModel,
    active: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> TestedModel:
    return TestedModel(model, base.config.vocab_size, active)


def load_foreign_model(folder: Path, dtype: torch.dtype, *, trust: bool) -> PreTrainedModel:
    """Any folder that transformers loads with no tensor left at random. Raises OtterError.

    Tensors that it leaves unread, as another tool's insertion has them, do not count here.
    """
    if is_wide_export(Checkpoint.open(folder).config):
        return load_wide(folder, dtype=dtype)
    model: PreTrainedModel = load_strictly(
        folder,
        "AutoModelForCausalLM",
        what="the model",
        dtype=dtype,
        extra_ok=True,
        trust_remote_code=trust,
    )
    return model

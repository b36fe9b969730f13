"""Loads the pair of models to compare, and runs one case on a model.

The same code runs the base, the graft and the poisoned graft, with the inputs and the seed of the
case. Outputs are compared by digests of logits and tokens, and of the base's own cache layers.
"""

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
from otter_cli.families.registry import is_wide_config
from otter_cli.model.load import check_device, load_base, load_config, load_strictly
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.wide import load_wide
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.bits import bit_pattern
from otter_cli.verification.grid import GENERATES, Case
from otter_cli.verification.trace import tensors_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TestedModel:
    """A model to run on tokens below `vocab`. Its calls run inside `active()`, a graft's inside
    `streaming()`."""

    model: PreTrainedModel
    vocab: int
    active: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class OutputDigests:
    """SHA-256 of bit patterns with dtypes and shapes.

    `said`: logits and tokens. `cache`: the base's own layers, which a foreign model may store in
    another form.
    """

    said: str
    cache: str


@dataclass
class CaseOutputs:
    """The outputs of a case.

    `logits`: [batch, positions, vocab], cached steps one after another; of `generate`, rows of all
    beams. `tokens`: the generated ones. `cache`: keys and values of the base's own layers.
    """

    logits: Tensor
    tokens: Tensor | None = None
    cache: list[Tensor] = field(default_factory=list)

    def digests(self) -> OutputDigests:
        """Runs are compared by digests, because two windows of logits over a large vocabulary would
        take more memory than the insertion."""
        outputs = [self.logits] if self.tokens is None else [self.logits, self.tokens]
        return OutputDigests(_sha256(outputs), _sha256(self.cache))


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{[*tensor.shape]}".encode())
        digest.update(bit_pattern(tensor).cpu().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CaseInputs:
    """Tokens of a case, with a mask and positions where rows are padded.

    All are [batch, length + steps]. The last `steps` columns are fed one by one.
    """

    tokens: Tensor
    mask: Tensor | None
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
    """Runs one case. Inputs and seeds depend on the case only."""
    inputs = draw_inputs(case, subject.vocab)
    run = _generate if case.path in GENERATES else _forward
    if case.path == "checkpointing":
        run = _forward_checkpointing
    with case_setting(case, subject.model), subject.active():
        return run(case, subject.model, inputs)


@contextmanager
def case_setting(case: Case, model: PreTrainedModel) -> Iterator[None]:
    """Inside, the attention implementation, threads and seed are those of the case. Threads and
    random generators are restored."""
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


def _forward(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    """Forwards over one cache: the prompt, whole or in chunks, then single tokens."""
    width = case.chunk or case.length
    ends = [*range(width, case.length, width), *range(case.length, case.length + case.steps + 1)]
    cache: Cache = DynamicCache(config=model.config)
    if case.path == "static":
        cache = StaticCache(config=model.config, max_cache_len=case.length + case.steps)
    logits, done = [], 0
    for end in ends:
        chunk, done = slice(done, end), end
        padded = {}
        if inputs.mask is not None and inputs.positions is not None:
            padded["attention_mask"] = inputs.mask[:, :end]
            padded["position_ids"] = inputs.positions[:, chunk]
        out = model(
            input_ids=inputs.tokens[:, chunk],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=case.keep,
            **padded,
        )
        logits.append(out.logits)
    # The cache may have further layers, which belong to the insertion.
    base_layers = [vars(layer) for layer in cache.layers[: model.config.num_hidden_layers]]
    joined = logits[0] if len(logits) == 1 else torch.cat(logits, 1)
    return CaseOutputs(joined, cache=list(tensors_in(base_layers)))


def _forward_checkpointing(case: Case, model: PreTrainedModel, inputs: CaseInputs) -> CaseOutputs:
    """Runs in training mode with checkpointed layers and gradients enabled."""
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
    """Runs `generate` for exactly `steps` tokens, by the method of the case and otherwise with the
    folder's own generation configuration."""
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


_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class ModelPair:
    """The base and the candidate to compare with it. `otter` is None where the candidate is no
    graft."""

    base: TestedModel
    candidate: TestedModel
    otter: OtterForCausalLM | None = None


def open_pair(request: VerificationRequest, *, dtype: str, device: str, shared: bool) -> ModelPair:
    """Loads both models in one dtype.

    `shared`: the files are equal by digest, so one set of base modules serves both. Raises
    OtterError for what cannot be loaded whole.
    """
    check_device(device)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    folder, base_folder = request.folder, request.base_folder
    if not (folder / MANIFEST).exists():
        base = load_base(base_folder, dtype=torch_dtype).to(device)
        foreign = _load_foreign_model(folder, torch_dtype, trust=request.trust).to(device)
        vocab = base.config.vocab_size
        return ModelPair(TestedModel(base, vocab), TestedModel(foreign, vocab))
    is_adapter = not (folder / "config.json").exists()
    otter = OtterForCausalLM.from_pretrained(
        folder,
        base=base_folder if is_adapter else None,
        dtype=torch_dtype,
        device=device,
        # The static level has hashed every file of a graft, and its findings are in the report.
        if_base_changed="refuse" if is_adapter else "ignore",
    )
    base = otter.base if shared else load_base(base_folder, dtype=torch_dtype).to(device).eval()
    vocab = base.config.vocab_size
    return ModelPair(
        TestedModel(base, vocab), TestedModel(otter.base, vocab, otter.streaming), otter
    )


def max_positions(base: Path) -> int:
    """How many positions the base was made for."""
    return int(getattr(load_config(base), "max_position_embeddings", 2048))


def main_setting(base: Path) -> tuple[str, str]:
    """The dtype that the base is stored in, and the attention that transformers runs it with."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    dtype = _DTYPES.get(Checkpoint.open(base).dtype, "float32")
    config_class = type(load_config(base))
    known = config_class in MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class] if known else None
    return dtype, "sdpa" if getattr(model_class, "_supports_sdpa", True) else "eager"


def _load_foreign_model(folder: Path, dtype: torch.dtype, *, trust: bool) -> PreTrainedModel:
    """Loads any folder that transformers can load with no tensor left at random. Raises OtterError.

    Tensors that transformers leaves unread, such as another tool's insertion, are accepted.
    """
    if is_wide_config(Checkpoint.open(folder).config):
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

"""OtterForCausalLM: a stock transformers model, unchanged, with inserted streams and signals.

Called by itself, `model.base` is the plain base. Through OtterForCausalLM, one forward returns the
base's logits, every requested signal, and the states that they are read from. Loading a graft is
strict: its inserted tensors are exactly those of its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError, closest
from otter_cli.families.rope import LengthRule
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.families.token_ids import check_learned_positions, check_token_ids
from otter_cli.graft.grafted_folder import IfChanged, open_graft
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import open_inserted_tensors
from otter_cli.model.activations import SelectedPositions
from otter_cli.model.capture import BaseCapture
from otter_cli.model.forward_context import ForwardContext
from otter_cli.model.lm_head import FrozenHead, StockKernelForward
from otter_cli.model.load import check_device, load_base
from otter_cli.model.signal_reader import SignalReader
from otter_cli.model.stream import Insertion
from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling

SignalNames = Literal["all"] | tuple[str, ...]


@dataclass
class OtterOutput:
    """One forward: logits [batch, tokens, vocab], base_state y [batch, tokens, d], inserted_state v
    [batch, tokens, D]. With `at`, states and signals are of its N positions, [N, ...]."""

    logits: Tensor | None
    signals: dict[str, Tensor]
    base_state: Tensor
    inserted_state: dict[str, Tensor]
    past_key_values: Cache | None = field(default=None, repr=False)


class OtterForCausalLM(nn.Module):
    """A base with its insertions. Called by itself, `base(...)` is the plain base. Called through
    this module, or inside `streaming()`, it carries the inserted streams. The base stays in eval
    mode and never gets a gradient."""

    def __init__(self, base: PreTrainedModel, shape: BaseShape, manifest: Manifest) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        StockKernelForward(base.get_submodule(shape.family.head))
        self.shape, self.manifest = shape, manifest
        # Texts of warnings that the user has seen.
        self.warned: set[str] = set()
        self.unembedding = FrozenHead(base, shape)
        self.insertions = nn.ModuleDict({c.name: Insertion(c, shape) for c in manifest.insertions})
        self.capture = BaseCapture(base, shape, self.insertions)
        self.signal_configs: dict[str, SignalConfig] = {}
        self._owner: dict[str, str] = {}
        for config in manifest.insertions:
            for signal in config.signals:
                self.signal_configs[signal.name], self._owner[signal.name] = signal, config.name

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        dtype: torch.dtype | None = None,
        insertion_dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        device: str | torch.device = "cpu",
        if_base_changed: IfChanged = "refuse",
    ) -> OtterForCausalLM:
        """Loads a grafted folder, or an adapter with its `base`. Raises OtterError unless every
        tensor is accounted for.

        `dtype`: of the base, by default its file's; `insertion_dtype`: of the inserted tensors, by
        default the base's. `quantization_config`: one of transformers', for the base as it loads.
        `if_base_changed`: files of the base that differ from those that were grafted are refused,
        or warned about and recorded, or not checked.
        """
        check_device(str(device))
        folder, base_folder = Path(folder), Path(base or folder)
        manifest = open_graft(
            folder, base=None if base is None else base_folder, if_changed=if_base_changed
        )
        stock = load_base(
            base_folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
        )
        shape = base_shape(Checkpoint.open(base_folder).config)
        tensors = read_inserted_tensors(folder, manifest, shape)
        dtype = insertion_dtype or stock.dtype
        model = assemble_graft(cls, stock, shape, manifest, tensors, dtype=dtype)
        return model.to(torch.device(device)).eval()

    def beside(
        self, folder: str | Path, *, insertion_dtype: torch.dtype | None = None
    ) -> OtterForCausalLM:
        """Another graft of the same base, on this one's modules: the base's weights are held once,
        and each graft's streams run only when it is the one that is called. Raises OtterError where
        that graft was made for other files."""
        folder = Path(folder)
        manifest = Manifest.read(folder)
        manifest.check_tensors(folder)
        if manifest.base.identity() != self.manifest.base.identity():
            raise OtterError(
                f"{folder} was made for {manifest.base.source}, another base than the one in "
                "memory",
                hint="load it by itself: OtterForCausalLM.from_pretrained",
            )
        tensors = read_inserted_tensors(folder, manifest, self.shape)
        dtype = insertion_dtype or self.base.dtype
        second = assemble_graft(type(self), self.base, self.shape, manifest, tensors, dtype=dtype)
        return second.to(self.device).eval()

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def generation_config(self) -> Any:
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        return self.base.device

    def train(self, mode: bool = True) -> Self:
        """The base stays in eval mode: its dropout would change the logits."""
        super().train(mode)
        self.base.eval()
        return self

    def new_cache(self) -> DynamicCache:
        """An empty KV cache. The insertion's own layers are appended when they are first used."""
        return DynamicCache(config=self.base.config)

    @contextmanager
    def streaming(self, grad: bool = False) -> Iterator[ForwardContext]:
        """Calls of `self.base` inside, also by `base.generate`, carry the streams. The context
        holds the last call's states."""
        with self.capture.recording(grad) as context:
            yield context

    def forward(
        self,
        input_ids: Tensor,
        *,
        signals: SignalNames = "all",
        logits: bool = True,
        logits_to_keep: int | Tensor = 0,
        at: tuple[Tensor, Tensor] | None = None,
        **arguments: Any,
    ) -> OtterOutput:
        """One pass of the base. `logits=False` skips the product over the vocabulary. `at`: the
        rows and columns of N positions, whose signals and states are returned. Raises OtterError
        for unknown signals.

        The base runs without gradients. The streams build a graph if gradients are enabled. Then,
        without logits and with few positions, the base's last layer runs at these only: y is equal
        up to rounding, and hooks on that layer see zeros at other positions.
        """
        names = tuple(self.signal_configs) if signals == "all" else self._check_signals(signals)
        if self.shape.length_rule is not None:
            self._require_one_side(self.shape.length_rule, input_ids, arguments)
        grad, selected = torch.is_grad_enabled(), None
        if at is not None and grad and not logits:
            selected = SelectedPositions(at, *input_ids.shape)
            selected = selected if selected.worth_selecting else None
        check_learned_positions(input_ids.shape[-1], self.shape, "a text")
        with (
            self.capture.recording(grad, selected=selected) as context,
            torch.no_grad(),
            self._explain_index_error(input_ids),
        ):
            if logits:
                out = self.base(input_ids=input_ids, logits_to_keep=logits_to_keep, **arguments)
            else:
                decoder = self.base.get_submodule(self.shape.family.decoder)
                out = decoder(input_ids=input_ids, **arguments)
        y, inserted = context.base_state, context.inserted_state
        assert y is not None
        if at is not None and selected is None:
            y, inserted = y[at], {name: v[at] for name, v in inserted.items()}
        return OtterOutput(
            logits=out.logits if logits else None,
            signals={n: self.read_signal(n, y, inserted) for n in names},
            base_state=y,
            inserted_state=inserted,
            past_key_values=out.past_key_values,
        )

    def read_signal(
        self,
        name: str,
        base_state: Tensor,
        inserted_state: Mapping[str, Tensor],
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The signal at the positions of the given states, which may be a selection of a forward's.

        `tokens` [..., k], for states [..., d]: action values of these alone, [..., k], without a
        product over the vocabulary; or future tokens [..., n, vocab] where these k follow."""
        reader, v = self._signal_reader(name, inserted_state)
        return reader.read(name, base_state, v, self.unembedding, tokens)

    def follow_signal(
        self, name: str, state: Tensor, inserted_state: Mapping[str, Tensor], tokens: Tensor
    ) -> Tensor:
        """The state [..., d] of a future signal's cell after one more of the `tokens` [...]. The
        first state is the base's own; `lm_head` gives the logits of a state."""
        reader, v = self._signal_reader(name, inserted_state)
        return reader.follow(name, state, v, self.unembedding, tokens)

    def lm_head(self, base_state: Tensor) -> Tensor:
        """The base's own output product on given states, [..., d] -> [..., vocab]."""
        return self.unembedding.logits(base_state)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """transformers' `generate` of the base, which carries no stream."""
        generator: Any = self.base
        return generator.generate(*arguments, **options)

    def generate_guided(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> list[Generation]:
        """`otter_cli.decoding.generate` of prompts [batch, n], without the tokens at which
        `attention_mask` is 0. `options`: its `guide`, `gate`, `drafter` and others. Raises the
        same OtterErrors."""
        # The only import against the order of packages: people look for this method here.
        from otter_cli.decoding.generate import generate
        from otter_cli.decoding.sampling import Sampling

        mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        prompts = [ids[real].tolist() for ids, real in zip(input_ids, mask.bool(), strict=True)]
        return generate(self, prompts, sampling or Sampling(), **options)

    def inserted_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The only trainable parameters, by their names on disk."""
        for insertion, module in self.insertions.items():
            for name, parameter in module.named_parameters():
                yield f"otter.{insertion}.{name}", parameter

    def inserted_state_dict(self) -> dict[str, Tensor]:
        """Inserted tensors by their names on disk, detached."""
        return {name: parameter.detach() for name, parameter in self.inserted_parameters()}

    def _require_one_side(
        self, rule: LengthRule, input_ids: Tensor, arguments: Mapping[str, Any]
    ) -> None:
        """Raises OtterError for texts of a batch that can't share the base's rotary angles."""
        mask = arguments.get("attention_mask")
        # A cache or a mask of the caller's own hides the lengths; the caller checks them.
        if arguments.get("past_key_values") is not None or (
            mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
        ):
            return
        shortest = longest = input_ids.shape[1]
        if mask is not None:
            shortest, longest = (int(length) for length in mask.sum(1).aminmax())
        rule.check_one_side(shortest, longest, "one batch")

    @contextmanager
    def _explain_index_error(self, input_ids: Tensor) -> Iterator[None]:
        """Names the token or position that an embedding lacks. A check before every pass would
        take time, and make a GPU wait."""
        try:
            yield
        except IndexError as error:
            check_token_ids(input_ids.tolist(), self.shape)
            if not self.shape.position_rows:
                raise
            raise OtterError(
                f"a text ends beyond the base's {self.shape.max_positions} positions",
                hint="shorten the text",
            ) from error

    def _signal_reader(
        self, name: str, inserted_state: Mapping[str, Tensor]
    ) -> tuple[SignalReader, Tensor | None]:
        """The reader of the insertion that has the signal, and its v."""
        self._check_signals((name,))
        owner = self._owner[name]
        return self.capture.insertions[owner].signals, inserted_state.get(owner)

    def _check_signals(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.signal_configs:
                near = closest(name, self.signal_configs)
                known = ", ".join(self.signal_configs) or "none"
                raise OtterError(
                    f"there is no signal {name!r} in this graft",
                    hint=(f"did you mean {near!r}? " if near else "") + f"its signals: {known}",
                )
        return names


def assemble_graft(
    cls: type[OtterForCausalLM],
    base: PreTrainedModel,
    shape: BaseShape,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
) -> OtterForCausalLM:
    """A loaded base with its inserted tensors, which must be all of them by their names on disk."""
    with torch.device("meta"):
        otter = cls(base, shape, manifest)
    for name, insertion in otter.insertions.items():
        prefix = f"otter.{name}."
        own = {
            key.removeprefix(prefix): t.to(dtype)
            for key, t in tensors.items()
            if key.startswith(prefix)
        }
        insertion.load_state_dict(own, strict=True, assign=True)
    return otter


def read_inserted_tensors(folder: Path, manifest: Manifest, shape: BaseShape) -> dict[str, Tensor]:
    """All inserted tensors, checked by name, shape and dtype against the plans. Raises
    OtterError."""
    tensors: dict[str, Tensor] = {}
    for file in open_inserted_tensors(folder, manifest.plans(shape)).files:
        tensors |= load_file(folder / file)
    return tensors

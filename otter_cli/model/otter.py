"""OtterForCausalLM: a stock transformers model, unchanged, with inserted streams and signals.

Called by itself, `model.base` is the plain base. Called through OtterForCausalLM, one forward gives
the base's logits, every requested signal, and the states they are read from. Loading a graft is
strict: the inserted tensors are exactly those of its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

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
from otter_cli.model.generation import GenerationMethods
from otter_cli.model.insertion import Insertion
from otter_cli.model.lm_head import FrozenHead, keep_stock_kernel
from otter_cli.model.load import check_device, load_base
from otter_cli.signals.config import SignalConfig

SignalNames = Literal["all"] | tuple[str, ...]


@dataclass
class OtterOutput:
    """One forward. Shapes: logits [batch, tokens, vocab], base_state [batch, tokens, d],
    inserted_state [.., D]; of N chosen positions [N, d] and [N, D]."""

    logits: Tensor | None
    signals: dict[str, Tensor]
    base_state: Tensor
    inserted_state: dict[str, Tensor]
    past_key_values: Cache | None = field(default=None, repr=False)


class OtterForCausalLM(GenerationMethods, nn.Module):
    """`base(...)` called by itself is the plain base; called through this module, or inside
    `streaming()`, it
    carries the inserted streams. The base stays in eval mode and never gets a gradient."""

    def __init__(self, base: PreTrainedModel, shape: BaseShape, manifest: Manifest) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        keep_stock_kernel(base.get_submodule(shape.family.head))
        self.shape, self.manifest = shape, manifest
        # What the user has been warned of: each text once.
        self.warned: set[str] = set()
        self.unembedding = FrozenHead(base, shape)
        self.insertions = nn.ModuleDict({c.name: Insertion(c, shape) for c in manifest.insertions})
        self.taps = BaseCapture(base, shape, self.insertions)
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
        """Loads a grafted folder, or an adapter with its `base`, strictly: every tensor accounted
        for, or OtterError.

        `dtype`: the base's, by default the file's; `insertion_dtype`: the inserted tensors', by
        default the base's. `quantization_config`: one of transformers', for the base as it loads.
        `if_base_changed`: files of the base that are not those that were grafted are refused,
        warned about and recorded, or not looked at.
        """

        return load_graft(
            cls,
            Path(folder),
            base=None if base is None else Path(base),
            dtype=dtype,
            insertion_dtype=insertion_dtype,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            if_changed=if_base_changed,
            device=torch.device(device),
        )

    def beside(
        self, folder: str | Path, *, insertion_dtype: torch.dtype | None = None
    ) -> OtterForCausalLM:
        """Another graft of the same base, loaded onto this one's: its weights are held once. Raises
        OtterError where that graft was made for other files."""

        return load_second_graft(self, Path(folder), insertion_dtype=insertion_dtype)

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
        """Dropout of the base would change what it says, so the base stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def new_cache(self) -> DynamicCache:
        """An empty KV cache; the insertion's own layers are appended on first use."""
        return DynamicCache(config=self.base.config)

    @contextmanager
    def streaming(self, grad: bool = False) -> Iterator[ForwardContext]:
        """Calls of `self.base` inside, `base.generate` too, carry the streams; the record holds the
        last states."""
        with self.taps.recording(grad) as record:
            yield record

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
        """One pass of the base. `logits=False` skips the vocabulary product. `at`: the texts and
        columns of N positions; signals and states are these alone. Unknown signals raise
        OtterError.

        The base runs without gradients; the streams build a graph when gradients are enabled. Then,
        without logits, the base's last layer ends at the N positions, where they are few: y is what
        it is otherwise but for rounding, and hooks on that layer see zeros elsewhere.
        """
        names = tuple(self.signal_configs) if signals == "all" else self._known(signals)
        if self.shape.length_rule is not None:
            self._require_one_side(self.shape.length_rule, input_ids, arguments)
        grad, chosen = torch.is_grad_enabled(), None
        if at is not None and grad and not logits:
            chosen = SelectedPositions(at, *input_ids.shape)
            chosen = chosen if chosen.few else None
        check_learned_positions(input_ids.shape[-1], self.shape, "a text")
        with (
            self.taps.recording(grad, chosen=chosen) as record,
            torch.no_grad(),
            self._rows_named(input_ids),
        ):
            if logits:
                out = self.base(input_ids=input_ids, logits_to_keep=logits_to_keep, **arguments)
            else:
                out = self.base.get_submodule(self.shape.family.decoder)(
                    input_ids=input_ids, **arguments
                )
        y, inserted = record.base_state, record.inserted_state
        assert y is not None
        if at is not None and chosen is None:
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
        """The signal at the positions of the given states, which may be a selection of a
        forward's.

        `tokens` [..., k], for states [..., d]: action values of these alone, [..., k], without a
        product over the vocabulary; or future tokens [..., n, vocab] where these k follow."""
        insertion, owner = self._of_signal(name)
        return insertion.read(name, base_state, inserted_state.get(owner), self.unembedding, tokens)

    def follow_signal(
        self, name: str, state: Tensor, inserted_state: Mapping[str, Tensor], tokens: Tensor
    ) -> Tensor:
        """The state [..., d] of a future signal's cell after one more of the `tokens` [...]: at
        first the base's own; `lm_head` says what it guesses next."""
        insertion, owner = self._of_signal(name)
        v = inserted_state.get(owner)
        return insertion.follow(name, state, v, self.unembedding, tokens)

    def lm_head(self, base_state: Tensor) -> Tensor:
        """The base's own output product on chosen states, [..., d] -> [..., vocab]."""
        return self.unembedding.logits(base_state)

    def inserted_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The only parameters that may be trained, by their names on disk."""
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
        # With a cache or masks of one's own, whoever made them knows the lengths.
        if arguments.get("past_key_values") is not None or (
            mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
        ):
            return
        shortest = longest = input_ids.shape[1]
        if mask is not None:
            shortest, longest = (int(length) for length in mask.sum(1).aminmax())
        rule.check_one_side(shortest, longest, "one batch")

    @contextmanager
    def _rows_named(self, input_ids: Tensor) -> Iterator[None]:
        """A row that an embedding lacks, named. Looked for after the fact: a look at every pass
        would cost, and make a GPU wait."""
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

    def _of_signal(self, name: str) -> tuple[Insertion, str]:
        if name not in self._owner:
            self._known((name,))
        owner = self._owner[name]
        return self.taps.insertions[owner], owner

    def _known(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.signal_configs:
                near = closest(name, self.signal_configs)
                known = ", ".join(self.signal_configs) or "none"
                raise OtterError(
                    f"there is no signal {name!r} in this graft",
                    hint=(f"did you mean {near!r}? " if near else "") + f"its signals: {known}",
                )
        return names


def load_graft(
    cls: type[OtterForCausalLM],
    folder: Path,
    *,
    base: Path | None,
    if_changed: IfChanged = "refuse",
    dtype: torch.dtype | None,
    insertion_dtype: torch.dtype | None,
    attn_implementation: str | None,
    quantization_config: Any,
    device: torch.device,
) -> OtterForCausalLM:
    check_device(str(device))
    manifest = open_graft(folder, base=base, if_changed=if_changed)
    model = load_base(
        base or folder,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization_config=quantization_config,
    )
    shape = base_shape(Checkpoint.open(base or folder).config)
    tensors = read_inserted_tensors(folder, manifest, shape)
    otter = assemble_graft(
        cls, model, shape, manifest, tensors, dtype=insertion_dtype or model.dtype
    )
    return otter.to(device).eval()


def load_second_graft(
    other: OtterForCausalLM, folder: Path, *, insertion_dtype: torch.dtype | None
) -> OtterForCausalLM:
    """A second graft on the very modules that `other` holds: the taps of each are still unless it
    is the one that runs."""
    manifest = Manifest.read(folder)
    manifest.check_tensors(folder)
    if manifest.base.identity() != other.manifest.base.identity():
        raise OtterError(
            f"{folder} was made for {manifest.base.source}, another base than the one in memory",
            hint="load it by itself: OtterForCausalLM.from_pretrained",
        )
    tensors = read_inserted_tensors(folder, manifest, other.shape)
    dtype = insertion_dtype or other.base.dtype
    second = assemble_graft(type(other), other.base, other.shape, manifest, tensors, dtype=dtype)
    return second.to(other.device).eval()


def assemble_graft(
    cls: type[OtterForCausalLM],
    base: PreTrainedModel,
    shape: BaseShape,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
) -> OtterForCausalLM:
    """A loaded base with its inserted tensors, by their names on disk: all of them, no others."""
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

"""The first of two ways in which the base is read: wrapped forwards of its modules.

A wrapper takes the place of one module's `forward`, calls it with the same arguments and returns
its result. There are three uses:

- CapturingForward keeps what goes into a module or comes out of it, for the streams. Handlers run
  later, so that nothing but one list append happens among the operations of the base's layers.
- SelectiveForward runs a module of the last layer at the selected positions only (training).
- `lm_head.StockKernelForward` makes a frozen head use the kernel of a stock model.

All do nothing unless their own base runs inside `BaseCapture.recording`, but for the last, which
changes no value. They are no torch hooks: a module with a hook leaves torch's fast path. The second
way is attention_hook.py. Neither changes a tensor of the base.

BaseCapture installs everything for one base; LayerCapture is its share in one decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families.family import Attention, FeedForward
from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import (
    AttentionActivations,
    BranchActivations,
    LayerInput,
    LayerSite,
    SelectedPositions,
)
from otter_cli.model.attention_hook import install_attention_hook
from otter_cli.model.backend import StreamBackend, fast_backends
from otter_cli.model.forward_context import (
    ACTIVE_CONTEXT,
    ForwardContext,
    StreamRunner,
    run_inserted,
)
from otter_cli.model.rotary import Rotations, rotary_function
from otter_cli.model.stream import Insertion

# Gets the context, the inputs or the output, and the keyword arguments.
Handler = Callable[[ForwardContext, Any, Any], None]


class CapturingForward:
    """Keeps a module's inputs, or with `after` its output, until `handler` gets them: at once with
    `now`, else when the context processes what was captured. `completes_layer`: the streams need
    nothing more of the layer, and run now unless they run after the base."""

    __slots__ = ("after", "capture", "completes_layer", "forward", "handler", "now")

    def __init__(
        self,
        capture: StreamRunner,
        module: nn.Module,
        handler: Handler,
        *,
        after: bool = False,
        now: bool = False,
        completes_layer: bool = False,
    ) -> None:
        self.capture, self.forward, self.handler = capture, module.forward, handler
        self.after, self.now, self.completes_layer = after, now, completes_layer
        # setattr would look for a parameter or module of that name first.
        module.__dict__["forward"] = self

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        context = ACTIVE_CONTEXT.get()
        if context is None or context.capture is not self.capture:
            return self.forward(*inputs, **kwargs)
        value = self.forward(*inputs, **kwargs) if self.after else inputs
        if self.now:
            self.handler(context, value, kwargs)
        else:
            context.captured.append((self.handler, value, kwargs))
            if self.completes_layer and not context.run_after_base:
                context.process_captured()
        return value if self.after else self.forward(*inputs, **kwargs)


class SelectiveForward:
    """Runs a module that treats each position by itself at the selected positions. Its output has
    zeros at the others, which nothing reads."""

    def __init__(self, capture: StreamRunner, module: nn.Module) -> None:
        self.capture, self.forward = capture, module.forward
        module.__dict__["forward"] = self

    def __call__(self, hidden: Tensor, *inputs: Any, **kwargs: Any) -> Any:
        context = ACTIVE_CONTEXT.get()
        if context is None or context.capture is not self.capture or context.selected is None:
            return self.forward(hidden, *inputs, **kwargs)
        selected = context.selected
        output = self.forward(selected.select(hidden)[None], *inputs, **kwargs)
        if isinstance(output, tuple):  # experts return their router's scores too
            return selected.scatter(output[0], hidden), *output[1:]
        return selected.scatter(output, hidden)


class LayerCapture:
    """Captures x, a and m of decoder layer `index`, and hands the layer to the context when all are
    there."""

    def __init__(self, capture: BaseCapture, index: int) -> None:
        self.capture, self.layer = capture, capture.layers[index]
        family = capture.family
        self.attention = _block_module(self.layer, family.attention)
        self.site = LayerSite(
            index,
            is_last=index == capture.depth - 1,
            apply_rotary=rotary_function(self.attention, family.attention),
            rotary_width=getattr(self.attention, "rotary_ndims", capture.head_dim),
        )
        self._install(family.attention, self.attention, self._enter_attention, "attention")
        self._install(family.ffn, _block_module(self.layer, family.ffn), self._enter_ffn, "ffn")

    def _install(
        self, block: Attention | FeedForward, module: nn.Module, enter: Handler, kind: str
    ) -> None:
        part, wrap = self.layer.get_submodule, partial(CapturingForward, self.capture)
        if block.norm and self.capture.reads_residual:
            wrap(part(block.norm), _capture_residual)
        wrap(module, enter)
        is_ffn = kind == "ffn"
        completes = is_ffn and not block.post_norm
        handler = partial(self._capture_base_out, kind, completes)
        if block.read_at == "input":
            wrap(part(block.last_linear), handler, completes_layer=completes)
        else:
            wrap(module, handler, after=True, completes_layer=completes)
        if block.post_norm:
            handler = partial(self._capture_branch_out, kind, is_ffn)
            wrap(part(block.post_norm), handler, completes_layer=is_ffn)

    def _enter_attention(
        self, context: ForwardContext, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.site.index == self.capture.first:
            self.capture.require_streams(context)
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else inputs[0]
        residual = context.residual if self.capture.family.attention.norm else x
        context.attention = AttentionActivations(x, residual, kwargs=kwargs)

    def _enter_ffn(self, context: ForwardContext, inputs: tuple[Any, ...], kwargs: Any) -> None:
        # A branch without a norm before it reads h itself.
        residual = context.residual if self.capture.family.ffn.norm else inputs[0]
        context.ffn = BranchActivations(inputs[0], residual)

    def _capture_base_out(
        self, kind: str, completes: bool, context: ForwardContext, value: Any, kwargs: Any
    ) -> None:
        """`value`: the inputs of the branch's last product, or the output of the whole branch."""
        getattr(context, kind).base_out = value[0] if isinstance(value, tuple) else value
        if completes:
            self._complete_layer(context)

    def _capture_branch_out(
        self, kind: str, completes: bool, context: ForwardContext, inputs: Any, kwargs: Any
    ) -> None:
        getattr(context, kind).branch_out = inputs[0]
        if completes:
            self._complete_layer(context)

    def _complete_layer(self, context: ForwardContext) -> None:
        attention, ffn = context.attention, context.ffn
        assert attention is not None and ffn is not None
        context.attention = context.ffn = None
        context.add_layer(LayerInput(self.site, attention, ffn))


def _capture_residual(context: ForwardContext, inputs: tuple[Tensor, ...], kwargs: Any) -> None:
    context.residual = inputs[0]


def _block_module(layer: nn.Module, block: Attention | FeedForward) -> nn.Module:
    usual = hasattr(layer, block.module.partition(".")[0])
    if not usual and isinstance(block, Attention) and block.alternative_module:
        return layer.get_submodule(block.alternative_module)
    return layer.get_submodule(block.module)


# On a CPU, forwards of few tokens run the streams after the base, in one pass: the weights are warm
# in the caches then, and each small operation takes a fraction of its time. What is captured until
# then grows with the tokens: more of them run so only while it takes few bytes. All others go layer
# by layer, by native code as long as it is faster than torch's products.
_MOST_LAZY_TOKENS, _MOST_NATIVE_TOKENS = 64, 256
_MOST_HELD_BYTES = 64 << 20


class BaseCapture:
    """All wrappers of one base. Outside `recording` they do nothing."""

    def __init__(self, base: nn.Module, shape: BaseShape, insertions: nn.ModuleDict) -> None:
        self.insertions = {
            name: module for name, module in insertions.items() if isinstance(module, Insertion)
        }
        family = self.family = shape.family
        self.head_dim, self.hidden, self.ffn = shape.head_dim, shape.hidden, shape.ffn
        norms = {insertion.config.norm for insertion in self.insertions.values()}
        # Otherwise h is freed as early as in the base alone.
        self.reads_residual = "base" in norms
        # A stream that reads h itself, not what a norm made of it, cannot run late: a base that
        # adds to h in place has changed it by then.
        self.can_run_late = bool(family.attention.norm and family.ffn.norm) and norms <= {"own"}
        self.layers = cast(nn.ModuleList, base.get_submodule(family.layers))
        self.depth = len(self.layers)
        self.backends: dict[str, list[StreamBackend]] = {
            name: fast_backends(insertion, shape, self.depth, number)
            for number, (name, insertion) in enumerate(self.insertions.items(), 1)
            if insertion.config.hidden
        }
        # Whether streams with a graph keep less, and run their layers twice (`recompute.py`).
        self.recompute = False
        self.captured_attentions: set[nn.Module] = set()
        install_attention_hook()
        self._install(base)

    @contextmanager
    def recording(
        self,
        grad: bool,
        *,
        run_on_request: bool = False,
        selected: SelectedPositions | None = None,
    ) -> Iterator[ForwardContext]:
        """Calls of the base inside carry the streams. The context then holds the last call's
        states, with `selected` at these positions only. With `run_on_request` it holds what the
        streams will read."""
        context = ForwardContext(
            self,
            grad,
            recompute=grad and self.recompute,
            run_on_request=run_on_request,
            selected=selected,
        )
        token = ACTIVE_CONTEXT.set(context)
        try:
            yield context
        finally:
            ACTIVE_CONTEXT.reset(token)

    def _install(self, base: nn.Module) -> None:
        module, wrap, family = base.get_submodule, partial(CapturingForward, self), self.family
        wrap(module(family.decoder), self._reset, now=True)
        wrap(module(family.embedding), self._start_streams, now=True)
        if family.positions:
            handler = partial(self._add_positions, family.positions.offset)
            wrap(module(family.positions.module), handler, now=True)
        carrying = {index for i in self.insertions.values() for index in i.config.layers}
        self.first = min(carrying, default=0)
        of_layer = 3 * self.hidden + self.ffn  # x twice, a about as wide, and m
        self.captured_numbers = len(carrying) * of_layer  # for each token
        for index in sorted(carrying):
            self.captured_attentions.add(LayerCapture(self, index).attention)
        norm = module(family.final_norm)
        wrap(norm, _capture_residual)
        wrap(norm, self._end_streams, after=True, now=True)
        self.selective_modules = self._position_wise(self.layers[-1])
        for selective in self.selective_modules:  # outside of wrappers that capture
            SelectiveForward(self, selective)

    def _position_wise(self, last: nn.Module) -> list[nn.Module]:
        """The modules of the last layer that may run at the selected positions only."""
        attention, ffn = self.family.attention, self.family.ffn
        modules = [_block_module(last, ffn)]
        if ffn.read_at == "input" and not ffn.last_linear.startswith(ffn.module + "."):
            modules.append(last.get_submodule(ffn.last_linear))
        if attention.read_at == "input":
            modules.append(last.get_submodule(attention.last_linear))
        return modules

    def require_streams(self, context: ForwardContext) -> None:
        """Raises OtterError where the base was called without token ids."""
        for name, insertion in self.insertions.items():
            if insertion.config.hidden and name not in context.z:
                raise OtterError(
                    f"insertion {name!r} got no token ids, only inputs_embeds",
                    hint="the inserted stream starts from token ids; pass input_ids",
                )

    def run_layers(self, context: ForwardContext, layers: Sequence[LayerInput]) -> None:
        """Runs the layers of every stream, each by the first backend that supports the call."""
        for name, z in context.z.items():
            indices = self.insertions[name].config.layers
            own = [layer for layer in layers if layer.site.index in indices]
            if not own:
                continue
            results = (backend.run(z, own, context) for backend in self.backends[name])
            context.z[name], v = next(result for result in results if result is not None)
            if v is not None:
                context.inserted_state[name] = v

    def _reset(self, context: ForwardContext, inputs: Any, kwargs: Any) -> None:
        context.captured.clear()
        context.pending.clear()
        context.z.clear()
        context.inserted_state.clear()
        context.residual = None
        context.rotations = Rotations()
        context.converted_masks = {}

    def _start_streams(self, context: ForwardContext, inputs: Any, kwargs: Any) -> None:
        tokens: Tensor = inputs[0]
        run_inserted(self._start, context, tokens)
        late = context.run_on_request or self._few_to_hold(context, tokens)
        context.run_after_base = self.can_run_late and not context.grad and late
        context.use_native = not context.grad and _on_cpu_within(tokens, _MOST_NATIVE_TOKENS)

    def _few_to_hold(self, context: ForwardContext, tokens: Tensor) -> bool:
        """Whether what the streams read may wait until the base is done."""
        if _on_cpu_within(tokens, _MOST_LAZY_TOKENS):
            return True
        width = max((z.element_size() for z in context.z.values()), default=0)
        held = tokens.numel() * self.captured_numbers * width
        return _on_cpu_within(tokens, _MOST_NATIVE_TOKENS) and held <= _MOST_HELD_BYTES

    def _start(self, context: ForwardContext, tokens: Tensor) -> None:
        for name, insertion in self.insertions.items():
            if insertion.config.hidden:
                context.z[name] = insertion.start(tokens)

    def _add_positions(
        self, offset: int, context: ForwardContext, inputs: Any, kwargs: dict[str, Any]
    ) -> None:
        positions = kwargs["position_ids"] if "position_ids" in kwargs else inputs[0]
        run_inserted(self._add_learned, context, positions, offset)

    def _add_learned(self, context: ForwardContext, positions: Tensor, offset: int) -> None:
        for name, z in context.z.items():
            if (table := self.insertions[name].positions) is not None:
                context.z[name] = z + table(positions + offset)

    def _end_streams(self, context: ForwardContext, y: Tensor, kwargs: Any) -> None:
        context.process_captured()
        h, selected = context.residual, context.selected
        if selected is not None and h is not None:
            h, y = selected.select(h), selected.select(y)
        context.residual, context.base_state = h, y
        if not context.run_on_request:
            self.finish_streams(context)

    def finish_streams(self, context: ForwardContext) -> None:
        """v of every stream. Layers that have not run yet run now."""
        run_inserted(self._final_norms, context)

    def _final_norms(self, context: ForwardContext) -> None:
        for name, z in context.streams.items():
            if name in context.inserted_state:  # computed with the last layer
                continue
            z = z if context.selected is None else context.selected.select(z)
            context.inserted_state[name] = self.insertions[name].norm(z, context.residual)


def _on_cpu_within(tokens: Tensor, most: int) -> bool:
    return tokens.device.type == "cpu" and tokens.numel() <= most

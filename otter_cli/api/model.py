"""A grafted model with its tokenizer, for use from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.api.generated_text import ScoredText, nan_if_not_finite, to_generated_text
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from otter_cli.decoding.bounds import Stops
    from otter_cli.decoding.sampling import Sampling
    from otter_cli.model.otter import OtterForCausalLM, OtterOutput


def load(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    **options: Any,
) -> Otter:
    """Loads a grafted folder, or an adapter with its `base`. Every tensor is accounted for.

    `dtype` is the dtype of the base, by default that of its files. `options` are those of
    `OtterForCausalLM.from_pretrained`. Raises OtterError.
    """
    from otter_cli.model.load import load_tokenizer
    from otter_cli.model.otter import OtterForCausalLM

    model = OtterForCausalLM.from_pretrained(
        folder, base=base, dtype=dtype, device=device, **options
    )
    return Otter(model, load_tokenizer(base or folder))


class Otter:
    """A graft and its tokenizer. `model` is the OtterForCausalLM."""

    def __init__(self, model: OtterForCausalLM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def signals(self) -> list[str]:
        """The names of the signals that score text: those with a value or class probabilities."""
        kinds = self.model.signal_configs.items()
        return [name for name, config in kinds if config.kind in ("value", "classes")]

    def __call__(self, input_ids: Tensor, **arguments: Any) -> OtterOutput:
        """One forward pass over token ids [batch, tokens]. The output holds the base's logits
        [batch, tokens, vocab] and `signals`.

        Takes the keyword arguments of the base, such as `attention_mask`.
        """
        output: OtterOutput = self.model(input_ids, **arguments)
        return output

    def generate(
        self,
        prompts: Any,
        *,
        guide: Mapping[str, float] | None = None,
        candidates: int = 10,
        signals: str | Sequence[str] | None = None,
        max_new_tokens: int = 64,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        num_return_sequences: int = 1,
        stop_strings: str | Sequence[str] | None = (),
        reject: str | Sequence[str] = (),
        gate: str | Sequence[str] = (),
        attention_mask: Tensor | None = None,
        streamer: Any = None,
    ) -> Any:
        """Continues text, messages (by the chat template), token ids, or a batch of these.

        `guide` maps signals to weights, such as {"reward": 2.0}; "toxicity/insult" names a label.
        Without a guide, the text is the base's own. Arguments that `transformers.generate` also has
        have the same meaning; the default is greedy decoding. `signals` names those to read
        (default: all that score text). Returns a GeneratedText, or a list of them for a batch.
        Raises OtterError.
        """
        from otter_cli.decoding.bounds import parse_gate
        from otter_cli.decoding.generate import generate
        from otter_cli.decoding.guides.signal_guides import guides_for_signals
        from otter_cli.signals.finite import non_finite_signals, warn_non_finite

        if num_return_sequences < 1:
            raise OtterError(
                f"num_return_sequences is {num_return_sequences}", hint="it must be at least 1"
            )
        ids, batch = encode_prompts(self.tokenizer, prompts, attention_mask)
        ids = [row for row in ids for _ in range(num_return_sequences)]
        batch = batch or num_return_sequences != 1
        names = self.signals if signals is None else as_list(signals)
        with _streamer_callback(streamer, ids) as on_token:
            rows = generate(
                self.model,
                ids,
                to_sampling(max_new_tokens, do_sample, temperature, top_k, top_p, seed),
                guide=guides_for_signals(self.model, guide or {}, candidates),
                gate=parse_gate(as_list(gate)),
                signals=names,
                stops=to_stops(stop_strings, reject, self.tokenizer),
                on_token=on_token,
            )
        labels = self.labels(names)
        warn_non_finite(name for row in rows for name in non_finite_signals(row.signals))
        texts = [
            to_generated_text(self.tokenizer, prompt, row, labels)
            for prompt, row in zip(ids, rows, strict=True)
        ]
        return texts if batch else texts[0]

    def score(self, text: Any, *, signals: str | Sequence[str] | None = None) -> ScoredText:
        """The signals at every token of a text, or of messages up to the token that ends the last
        turn. The last token has the score of the whole text. Raises OtterError."""
        import numpy as np
        import torch

        from otter_cli.decoding.request_checks import request_warnings, warn_once
        from otter_cli.decoding.results import token_texts
        from otter_cli.decoding.session import check_scoring_signal
        from otter_cli.signals.finite import class_probabilities, warn_non_finite

        ids = encode_scored_text(self.tokenizer, text)
        if len(ids) > self.model.shape.max_positions:
            raise OtterError(
                f"a text of {len(ids)} tokens exceeds the base's window of "
                f"{self.model.shape.max_positions}",
                hint="score its parts one by one",
            )
        names = self.signals if signals is None else as_list(signals)
        for name in names:
            check_scoring_signal(self.model, name)
        warn_once(self.model, request_warnings(self.model, signals=names))
        tensor = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            outputs = self.model(tensor, signals=tuple(names), logits=False).signals
        values = {}
        for name in names:
            output = outputs[name]
            if self.model.signal_configs[name].kind == "classes":
                output = class_probabilities(output)
            values[name] = nan_if_not_finite(output.float().cpu().numpy()[0])
        warn_non_finite(name for name in names if np.isnan(values[name]).any())
        tokens = token_texts(self.tokenizer, [], ids)
        return ScoredText("".join(tokens), tokens, ids, values, self.labels(names))

    def labels(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The names of the scores of each signal that has several."""
        configs = {name: self.model.signal_configs[name] for name in names}
        return {name: list(c.labels) for name, c in configs.items() if c.size > 1}


@contextmanager
def _streamer_callback(streamer: Any, ids: Sequence[Sequence[int]]) -> Iterator[Any]:
    """A callback that passes each token to a transformers streamer, after the prompt. The stream
    always ends, since another thread may be waiting for it. Raises OtterError."""
    if streamer is None:
        yield None
        return
    import torch

    def put(row: int, token: int) -> None:
        streamer.put(torch.tensor([token]))

    try:
        if len(ids) != 1:
            raise OtterError("a streamer takes one prompt at a time", hint="leave streamer out")
        streamer.put(torch.tensor(ids))
        yield put
    finally:
        streamer.end()


def to_sampling(
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_k: int,
    top_p: float,
    seed: int,
) -> Sampling:
    """Greedy decoding, unless a temperature or `do_sample=True` asks for sampling. Raises
    OtterError."""
    from otter_cli.decoding.sampling import Sampling

    if do_sample and temperature == 0:
        raise OtterError("do_sample=True with temperature 0", hint="give a temperature above 0")
    if do_sample is False:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0 if do_sample else 0.0
    return Sampling(max_new_tokens, temperature, top_k, top_p, seed)


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, or several, as a list. A single string is one name."""
    return [names] if isinstance(names, str) else list(names or ())


def to_stops(
    strings: str | Sequence[str] | None, reject: str | Sequence[str], tokenizer: Any
) -> Stops:
    """Stop strings, and bounds such as "toxicity>0.9", that end a text. Raises OtterError."""
    from otter_cli.decoding.bounds import Stops, parse_signal_bound

    bounds = tuple(map(parse_signal_bound, as_list(reject)))
    return Stops(tuple(as_list(strings)), bounds, tokenizer)


def encode_prompts(
    tokenizer: Any, prompts: Any, attention_mask: Tensor | None = None
) -> tuple[list[list[int]], bool]:
    """The token ids of each prompt, and whether the prompts are a batch. Raises OtterError.

    The chat template writes a list of messages, with the generation prompt; text is encoded as it
    is. A tensor [batch, tokens] is read where `attention_mask` is 1.
    """
    if hasattr(prompts, "ndim"):
        return _split_tensor(prompts, attention_mask)
    if attention_mask is not None:
        raise OtterError(
            "attention_mask goes with a tensor of token ids", hint="leave it out for text"
        )
    if isinstance(prompts, str):
        return [list(tokenizer(prompts)["input_ids"])], False
    if not isinstance(prompts, Sequence) or not prompts:
        raise OtterError(f"a prompt of type {type(prompts).__name__}", hint=_PROMPT_FORMS)
    if isinstance(prompts[0], Mapping):
        from otter_cli.data.chat_template import render_chat

        return [list(render_chat(tokenizer, prompts, generate=True).ids)], False
    if isinstance(prompts[0], int):
        return [list(prompts)], False
    return [_encode_one(tokenizer, prompt) for prompt in prompts], True


def _encode_one(tokenizer: Any, prompt: Any) -> list[int]:
    """The token ids of one prompt of a batch. Raises OtterError for a batch within it."""
    ids, batch = encode_prompts(tokenizer, prompt)
    if batch:
        raise OtterError("a batch within a batch of prompts", hint=_PROMPT_FORMS)
    return ids[0]


def encode_scored_text(tokenizer: Any, text: Any) -> list[int]:
    """The token ids of the text to score. Raises OtterError.

    Messages are encoded up to the token that ends the last turn, where training reads the score.
    No generation prompt follows.
    """
    if isinstance(text, Sequence) and text and isinstance(text[0], Mapping):
        from otter_cli.data.chat_template import render_chat, turn_length

        dialogue = render_chat(tokenizer, text)
        return list(dialogue.ids[: turn_length(tokenizer, dialogue.ids)[0]])
    ids = encode_prompts(tokenizer, text)[0]
    if len(ids) != 1:
        raise OtterError("score reads one text at a time", hint="call it for each text")
    if not ids[0]:
        raise OtterError("the text has no tokens", hint="give a text with a word in it")
    return ids[0]


_PROMPT_FORMS = "give text, a list of messages, token ids, or a list of these"


def _split_tensor(ids: Tensor, mask: Tensor | None) -> tuple[list[list[int]], bool]:
    if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
        shape = list(ids.shape) if mask is None else [list(ids.shape), list(mask.shape)]
        raise OtterError(
            f"token ids of shape {shape}", hint="give [batch, tokens], and a mask of that shape"
        )
    if mask is None:
        return [row.tolist() for row in ids], True
    # `== 1` works for tensors and for numpy arrays.
    return [row[kept].tolist() for row, kept in zip(ids, mask == 1, strict=True)], True

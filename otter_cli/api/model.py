"""A grafted model with its tokenizer, for use from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.api.generated import ScoredText, finite, generated_text
from otter_cli.api.options import listed, sampling_of, stops_of
from otter_cli.api.prompts import prompt_ids, scored_ids
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from otter_cli.model import OtterForCausalLM, OtterOutput


def load(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    **options: Any,
) -> Otter:
    """Loads a grafted folder, or an adapter with its `base`. Every tensor is accounted for.

    `dtype` is the base's, by default the file's; `options` are those of
    `OtterForCausalLM.from_pretrained`. Raises OtterError.
    """
    from otter_cli.model import OtterForCausalLM
    from otter_cli.training.tokenizer import load_tokenizer

    model = OtterForCausalLM.from_pretrained(
        folder, base=base, dtype=dtype, device=device, **options
    )
    return Otter(model, load_tokenizer(Path(base or folder)))


class Otter:
    """`model` is the OtterForCausalLM, `tokenizer` the base's."""

    def __init__(self, model: OtterForCausalLM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def signals(self) -> list[str]:
        """Names of the signals that score text."""
        kinds = self.model.signal_configs.items()
        return [name for name, config in kinds if config.kind in ("value", "classes")]

    def __call__(self, input_ids: Tensor, **arguments: Any) -> OtterOutput:
        """One forward pass: logits [batch, tokens, vocab] as the base gives them, and `signals`.

        Takes the base's own keyword arguments, such as `attention_mask`.
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
        """Continues text, messages (through the chat template), token ids, or a batch of these.

        `guide` maps signals to weights, {"reward": 2.0}; "toxicity/insult" names a label. Without a
        guide the text is the base's own. Names that `transformers.generate` has mean what they mean
        there; the default is greedy. `signals`: which to read (default: all that score text).
        Returns a GeneratedText, or a list of them for a batch. Raises OtterError.
        """
        from otter_cli.decoding import generate
        from otter_cli.decoding.gates import parse_gate
        from otter_cli.decoding.named_guides import guides_of
        from otter_cli.signals.finite import broken, warn_not_finite

        if num_return_sequences < 1:
            raise OtterError(
                f"num_return_sequences is {num_return_sequences}", hint="it must be at least 1"
            )
        ids, batch = prompt_ids(self.tokenizer, prompts, attention_mask)
        ids = [row for row in ids for _ in range(num_return_sequences)]
        batch = batch or num_return_sequences != 1
        names = self.signals if signals is None else listed(signals)
        with _fed(streamer, ids) as on_token:
            rows = generate(
                self.model,
                ids,
                sampling_of(max_new_tokens, do_sample, temperature, top_k, top_p, seed),
                guide=guides_of(self.model, guide or {}, candidates),
                gate=parse_gate(listed(gate)),
                signals=names,
                stops=stops_of(stop_strings, reject, self.tokenizer),
                on_token=on_token,
            )
        labels = self.labels(names)
        warn_not_finite(name for row in rows for name in broken(row.signals))
        texts = [
            generated_text(self.tokenizer, prompt, row, labels)
            for prompt, row in zip(ids, rows, strict=True)
        ]
        return texts if batch else texts[0]

    def score(self, text: Any, *, signals: str | Sequence[str] | None = None) -> ScoredText:
        """The signals at every token of a text, or of a dialogue of messages up to the token that
        ends its last turn: there stands the score of the whole. Raises OtterError."""
        import numpy as np
        import torch

        from otter_cli.decoding.positions import warn_once, warnings_of
        from otter_cli.decoding.scores import check_scores
        from otter_cli.decoding.texts import token_texts
        from otter_cli.signals.finite import probabilities, warn_not_finite

        ids = scored_ids(self.tokenizer, text)
        if len(ids) > self.model.shape.max_positions:
            raise OtterError(
                f"a text of {len(ids)} tokens exceeds the base's window of "
                f"{self.model.shape.max_positions}",
                hint="score its parts one by one",
            )
        names = self.signals if signals is None else listed(signals)
        for name in names:
            check_scores(self.model, name)
        warn_once(self.model, warnings_of(self.model, signals=names))
        tensor = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            read = self.model(tensor, signals=tuple(names), logits=False).signals
        configs = self.model.signal_configs
        values = {
            name: finite(
                (probabilities(read[name]) if configs[name].kind == "classes" else read[name])
                .float()
                .cpu()
                .numpy()[0]
            )
            for name in names
        }
        warn_not_finite(name for name in names if np.isnan(values[name]).any())
        tokens = token_texts(self.tokenizer, [], ids)
        return ScoredText("".join(tokens), tokens, ids, values, self.labels(names))

    def labels(self, names: Sequence[str]) -> dict[str, list[str]]:
        """What the several scores of a signal are called, for those that have several."""
        configs = {name: self.model.signal_configs[name] for name in names}
        return {name: list(c.labels) for name, c in configs.items() if c.size > 1}


@contextmanager
def _fed(streamer: Any, ids: Sequence[Sequence[int]]) -> Iterator[Any]:
    """What hands tokens to a transformers streamer: the prompt first, then each token. The stream
    ends whatever happens, since another thread may be waiting for it. Raises OtterError."""
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

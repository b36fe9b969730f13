"""Random operations on a session, each checked against recomputing the whole text without a cache.

A hundred thousand of them: `make soak`, which writes results/decoding/operations.json.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from otter_cli.decoding import DecodingSession, State
from otter_cli.model import OtterForCausalLM
from tests.support.checkpoints import write_checkpoint
from tests.support.grafts import random_graft

LONGEST = 110
FORMS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("llama", {}, {"heads": 2}),
    ("llama", {}, {"heads": 4, "kv": "base"}),
    ("llama", {}, {"hidden": 0}),
    ("mistral", {"sliding_window": 8}, {"heads": 2}),
)


def models(folder: Path) -> list[Any]:
    """Tiny grafts in float64: own keys, the base's, none, and a windowed base."""
    found = []
    for number, (family, config, options) in enumerate(FORMS):
        base = folder / f"base{number}"
        write_checkpoint(base, family, **config)
        out = random_graft(base, folder / f"g{number}", **{"hidden": 8, "ffn": 16, **options})
        found.append(OtterForCausalLM.from_pretrained(out, dtype=torch.float64))
    return found


class Episode:
    """One session and, beside it, the texts that its rows should hold."""

    def __init__(self, model: Any, draw: random.Random, length: int | None) -> None:
        self.model, self.draw = model, draw
        self.texts = [self._tokens(draw.randint(1, 9)) for _ in range(draw.randint(1, 4))]
        self.session = DecodingSession(model, length=length)
        self.largest = 0.0
        self._check(self.session.prefill(self.texts), list(range(len(self.texts))))

    def operate(self) -> str:
        operation = self.draw.choice(
            ("step", "chain", "candidates", "tree", "crop", "fork", "reorder")
        )
        getattr(self, operation)()
        assert self.session.positions.tolist() == [len(text) for text in self.texts]
        assert self.session.width <= 1.5 * max(map(len, self.texts)) + 17
        return operation

    @property
    def over(self) -> bool:
        return max(map(len, self.texts)) > LONGEST - 8

    def step(self) -> None:
        tokens = self._tokens(len(self.texts))
        state = self.session.step(torch.tensor(tokens))
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        self._check(state, list(range(len(self.texts))))

    def chain(self) -> None:
        """A row that has stopped keeps nothing."""
        tokens = self._grid(self.draw.randint(1, 4))
        kept = [self.draw.randint(0, tokens.shape[1]) for _ in self.texts]
        state = self.session.extend(tokens)
        self.session.keep(torch.tensor(kept))
        for text, row, count in zip(self.texts, tokens.tolist(), kept, strict=True):
            text += row[:count]
        last = torch.tensor(kept) - 1
        self._check(state.at(last.clamp(min=0)), [row for row, n in enumerate(kept) if n])

    def candidates(self) -> None:
        tokens = self._grid(self.draw.randint(1, 6))
        index = torch.tensor([self.draw.randrange(tokens.shape[1]) for _ in self.texts])
        state = self.session.branch(tokens)
        self.session.choose(index)
        for text, row, at in zip(self.texts, tokens.tolist(), index.tolist(), strict=True):
            text.append(row[at])
        self._check(state.at(index), list(range(len(self.texts))))

    def tree(self) -> None:
        """Grown in two passes; each row keeps a path of its own, or nothing."""
        sizes = self.draw.randint(1, 4), self.draw.randint(0, 4)
        parents = [self.draw.randint(-1, node - 1) for node in range(sum(sizes))]
        tokens = self._grid(sum(sizes))
        state = self.session.grow(tokens[:, : sizes[0]], parents[: sizes[0]])
        if sizes[1]:
            more = self.session.grow(tokens[:, sizes[0] :], parents[sizes[0] :])
            state = state.then(more)
        paths = []
        for text, row in zip(self.texts, tokens.tolist(), strict=True):
            path, node = [], self.draw.randint(-1, sum(sizes) - 1)
            while node >= 0:
                path.insert(0, node)
                node = parents[node]
            paths.append(path)
            text += [row[node] for node in path]
        width = max(1, *map(len, paths))
        padded = torch.tensor([path + [0] * (width - len(path)) for path in paths])
        self.session.keep_path(padded, torch.tensor([len(path) for path in paths]))
        last = torch.tensor([path[-1] if path else 0 for path in paths])
        self._check(state.at(last), [row for row, path in enumerate(paths) if path])

    def crop(self) -> None:
        counts = [self.draw.randint(0, min(4, len(text) - 1)) for text in self.texts]
        self.session.crop(torch.tensor(counts))
        self.texts = [text[: len(text) - n] for text, n in zip(self.texts, counts, strict=True)]

    def fork(self) -> None:
        if len(self.texts) <= 2:
            self.session.fork(2)
            self.texts = [list(text) for text in self.texts for _ in range(2)]

    def reorder(self) -> None:
        count = self.draw.randint(1, len(self.texts))
        rows = [self.draw.randrange(len(self.texts)) for _ in range(count)]
        self.session.reorder(torch.tensor(rows))
        self.texts = [list(self.texts[row]) for row in rows]

    def _check(self, state: State, rows: list[int]) -> None:
        if not rows:
            return
        width = max(map(len, self.texts))
        padded = torch.tensor([text + [0] * (width - len(text)) for text in self.texts])
        with torch.no_grad():
            out = self.model(padded, signals=(), logits=False)
        last = torch.tensor([len(text) - 1 for text in self.texts])
        expected = State(out.base_state, out.inserted_state).at(last)
        read = [self.session.logits, *(self._reader(name) for name in self.model.signal_configs)]
        for one in read:
            got, want = one(state)[rows], one(expected)[rows]
            self.largest = max(self.largest, float((got - want).abs().max()))
            # The base's own norms round to float32, in any dtype.
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def _reader(self, name: str) -> Any:
        return lambda state: self.session.read(name, state)

    def _tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(3, 97) for _ in range(count)]

    def _grid(self, width: int) -> Tensor:
        return torch.tensor([self._tokens(width) for _ in self.texts])


def run(folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Raises AssertionError at the first difference; else what was done and seen."""
    draw, tiny = random.Random(seed), models(folder)
    done: Counter[str] = Counter()
    largest, episodes, memory = 0.0, 0, []
    while done.total() < count:
        # Preallocated, a third of the time; holes between a row's tokens need some more slots.
        length = 2 * LONGEST + 40 if draw.random() < 1 / 3 else None
        episode = Episode(tiny[episodes % len(tiny)], draw, length)
        while not episode.over and done.total() < count and draw.random() > 0.01:
            done[episode.operate()] += 1
        largest, episodes = max(largest, episode.largest), episodes + 1
        if episodes % 50 == 0:
            memory.append(psutil.Process().memory_info().rss)
    return {
        "operations": done.total(),
        "by_kind": dict(sorted(done.items())),
        "sessions": episodes,
        "seed": seed,
        "largest_difference": largest,
        "resident_bytes": memory[:: max(1, len(memory) // 10)],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = run(Path(temporary), int(sys.argv[1]))
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n")
    print(target.read_text())

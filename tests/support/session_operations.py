"""Random operations on a session, each checked against recomputing the whole text without a cache.

A hundred thousand of them: `make soak`, which writes results/decoding/operations.json as it goes,
and goes on from there.
"""

import gc
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from torch import Tensor, nn

from otter_cli.core.atomic import write_json
from otter_cli.decoding.kv_session import HiddenStates, concatenate
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
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
        write_checkpoint(base, family, num_hidden_layers=2, **config)
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
        self._check(state.select(last.clamp(min=0)), [row for row, n in enumerate(kept) if n])

    def candidates(self) -> None:
        tokens = self._grid(self.draw.randint(1, 6))
        index = torch.tensor([self.draw.randrange(tokens.shape[1]) for _ in self.texts])
        state = self.session.extend_candidates(tokens)
        self.session.keep_candidate(index)
        for text, row, at in zip(self.texts, tokens.tolist(), index.tolist(), strict=True):
            text.append(row[at])
        self._check(state.select(index), list(range(len(self.texts))))

    def tree(self) -> None:
        """Grown in two passes; each row keeps a path of its own, or nothing."""
        sizes = self.draw.randint(1, 4), self.draw.randint(0, 4)
        parents = [self.draw.randint(-1, node - 1) for node in range(sum(sizes))]
        tokens = self._grid(sum(sizes))
        state = self.session.extend_tree(tokens[:, : sizes[0]], parents[: sizes[0]])
        if sizes[1]:
            more = self.session.extend_tree(tokens[:, sizes[0] :], parents[sizes[0] :])
            state = concatenate([state, more])
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
        self._check(state.select(last), [row for row, path in enumerate(paths) if path])

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

    def _check(self, state: HiddenStates, rows: list[int]) -> None:
        if not rows:
            return
        width = max(map(len, self.texts))
        padded = torch.tensor([text + [0] * (width - len(text)) for text in self.texts])
        with torch.no_grad():
            out = self.model(padded, signals=(), logits=False)
        last = torch.tensor([len(text) - 1 for text in self.texts])
        expected = HiddenStates(out.base_state, out.inserted_state).select(last)
        read = [self.session.logits, *(self._reader(name) for name in self.model.signal_configs)]
        for one in read:
            got, want = one(state)[rows], one(expected)[rows]
            self.largest = max(self.largest, float((got - want).abs().max()))
            # The base's own norms round to float32, in any dtype.
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

    def _reader(self, name: str) -> Any:
        return lambda state: self.session.read(name, state)

    def _tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(3, 97) for _ in range(count)]

    def _grid(self, width: int) -> Tensor:
        return torch.tensor([self._tokens(width) for _ in self.texts])


@dataclass
class Soak:
    """What was done and seen so far. An episode depends on `seed` and its number alone, so a run
    that was stopped goes on where it was, and one that failed can be had again."""

    seed: int = 0
    operations: int = 0
    sessions: int = 0
    processes: int = 0
    largest_difference: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    # At every tenth of the way: resident bytes, and how many tensors are alive.
    memory: list[dict[str, int]] = field(default_factory=list)

    def run(self, folder: Path, count: int, seen: Callable[[], None] = lambda: None) -> Self:
        """Up to `count` operations; `seen` is called at every fiftieth of the way. Raises
        AssertionError at the first difference."""
        tiny, self.processes = models(folder), self.processes + 1
        done = Counter(self.by_kind)
        shown = 50 * self.operations // count
        while self.operations < count:
            self.operations += self._episode(tiny, done, count)
            self.sessions += 1
            self.by_kind = dict(sorted(done.items()))
            if 10 * self.operations // count > len(self.memory):
                self._weigh()
            if (at := 50 * self.operations // count) > shown:
                shown = at
                seen()
        return self

    def _episode(self, tiny: list[Any], done: Counter[str], count: int) -> int:
        draw = random.Random(f"{self.seed}, {self.sessions}")
        # Preallocated, a third of the time; holes between a row's tokens need some more slots.
        length = 2 * LONGEST + 40 if draw.random() < 1 / 3 else None
        episode = Episode(tiny[self.sessions % len(tiny)], draw, length)
        operations = 0
        while not episode.over and self.operations + operations < count and draw.random() > 0.01:
            done[episode.operate()] += 1
            operations += 1
        self.largest_difference = max(self.largest_difference, episode.largest)
        return operations

    def _weigh(self) -> None:
        gc.collect()
        alive = sum(type(one) in (Tensor, nn.Parameter) for one in gc.get_objects())
        resident = psutil.Process().memory_info().rss
        self.memory.append(
            {"operations": self.operations, "resident_bytes": resident, "tensors": alive}
        )


def main(count: int, target: Path) -> None:
    """Goes on from what `target` holds, if it is there, and writes it as it goes."""
    soak = Soak(**json.loads(target.read_text())) if target.is_file() else Soak()

    def write() -> None:
        write_json(target, asdict(soak))
        print(f"{soak.operations} of {count} operations, {soak.sessions} sessions", flush=True)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        soak.run(Path(temporary), count, write)
    write()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

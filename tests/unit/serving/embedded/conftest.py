"""A toy chat model with signals, and a server for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.grafts import chat_base, random_graft
from tests.support.live_server import Live, live_server

SIGNALS = ("reward", "tone=classes:rude,kind", "value=vocabulary", "future:2,plain")


@pytest.fixture(scope="session")
def chat_graft(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All inserted tensors are random, so that signals and guidance act."""
    tiny = tiny_checkpoint("llama", max_position_embeddings=512)
    base = chat_base(tiny, tmp_path_factory.mktemp("serving") / "base")
    out = base.parent / "toy"
    return random_graft(base, out, signals=SIGNALS, hidden=8, heads=2, ffn=16, scale=0.2)


@pytest.fixture(scope="session")
def live(chat_graft: Path) -> Iterator[Live]:
    with live_server(chat_graft, max_tokens=400) as server:
        yield server


@pytest.fixture(scope="session")
def client(live: Live) -> Any:
    return live.client()


@pytest.fixture
def endless(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy never writes its end token as an end: answers have the length that was asked for."""
    monkeypatch.setattr(live.otter.model.generation_config, "eos_token_id", None)

"""Two grafts on one base in memory: its weights are held once, and neither hears the other."""

from pathlib import Path

import pytest
import torch
from torch import nn

from otter_cli.core.errors import OtterError
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft


@pytest.fixture
def folders(tiny_llama: Path, tmp_path: Path) -> tuple[Path, Path]:
    one = random_graft(tiny_llama, tmp_path / "one", hidden=8, heads=2, ffn=16)
    two = random_graft(tiny_llama, tmp_path / "two", hidden=4, heads=2, ffn=8, kv="base")
    return one, two


def _storages(*models: nn.Module) -> dict[int, int]:
    """Bytes of every storage that weights and buffers lie in."""
    found = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def test_the_base_lies_in_memory_once(folders: tuple[Path, Path]) -> None:
    one = OtterForCausalLM.from_pretrained(folders[0])
    two = one.beside(folders[1])
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():  # packs the products
        one(tokens), two(tokens)
    inserted = [sum(p.nbytes for _, p in m.inserted_parameters()) for m in (one, two)]
    base = sum(_storages(one.base).values())
    assert sum(_storages(one, two).values()) == base + sum(inserted)


def test_each_says_what_it_says_alone(folders: tuple[Path, Path]) -> None:
    one = OtterForCausalLM.from_pretrained(folders[0])
    models = [one, one.beside(folders[1])]
    alone = [OtterForCausalLM.from_pretrained(folder) for folder in folders]
    caches = {model: model.new_cache() for model in (*models, *alone)}
    for tokens in torch.arange(3, 15).view(3, 1, 4):
        for model, single in zip(models, alone, strict=True):
            with torch.no_grad():
                got = model(tokens, past_key_values=caches[model])
                expected = single(tokens, past_key_values=caches[single])
            assert torch.equal(got.logits, expected.logits)
            assert torch.equal(got.inserted_state["main"], expected.inserted_state["main"])
            assert torch.equal(got.signals["reward"], expected.signals["reward"])


def test_a_graft_of_another_base_is_refused(
    folders: tuple[Path, Path], tiny_qwen3: Path, tmp_path: Path
) -> None:
    other = random_graft(tiny_qwen3, tmp_path / "other", hidden=8, heads=2, ffn=16)
    with pytest.raises(OtterError, match="another base than the one in memory"):
        OtterForCausalLM.from_pretrained(folders[0]).beside(other)

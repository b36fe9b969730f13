"""A token that the embedding has no row for, and a text past the learned positions, are named where
they are used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.run import train
from tests.support.training import small_graft, small_recipe


@pytest.fixture(scope="module")
def gpt2(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> OtterForCausalLM:
    base = tiny_checkpoint("gpt2", num_key_value_heads=4, max_position_embeddings=24)
    return OtterForCausalLM.from_pretrained(small_graft(base, tmp_path_factory.mktemp("g") / "g"))


def test_generation_names_the_prompt_and_the_id(gpt2: OtterForCausalLM) -> None:
    with pytest.raises(OtterError, match=r"prompt 2 holds the token id 97.* has 97 tokens"):
        generate(gpt2, [[5, 6], [7, 97]], Sampling(2))
    with pytest.raises(OtterError, match="window of 24"):
        generate(gpt2, [[5] * 20], Sampling(8))


def test_a_forward_names_the_id_and_the_length(gpt2: OtterForCausalLM) -> None:
    with pytest.raises(OtterError, match="text 2 holds the token id 200"):
        gpt2(torch.tensor([[5, 6], [200, 5]]))
    with pytest.raises(OtterError, match="a text has 25 tokens, and the base has 24 learned"):
        gpt2(torch.ones(1, 25, dtype=torch.long))
    with torch.no_grad():
        cache = gpt2(torch.ones(1, 24, dtype=torch.long), use_cache=True).past_key_values
        with pytest.raises(OtterError, match="beyond the base's 24 positions"):
            gpt2(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)


def _with_token(folder: Path, out: Path, content: str, **special: str) -> Path:
    """The tokenizer of `folder` with a token that the embedding has no row for."""
    shutil.copytree(folder, out)
    (path := out / "tokenizer.json").chmod(0o644)
    tokenizer = json.loads(path.read_text())
    token = {**tokenizer["added_tokens"][0], "id": 97, "content": content}
    tokenizer["added_tokens"].append(token)
    path.unlink()
    path.write_text(json.dumps(tokenizer))
    settings = out / "tokenizer_config.json"
    text = json.dumps({**json.loads(settings.read_text()), **special})
    settings.unlink()
    settings.write_text(text)
    return out


@pytest.mark.parametrize(
    ("content", "special", "message"),
    [
        ("thanks", {}, r"signal reward: row \d+, text 1 holds the token id 97"),
        ("<|pad|>", {"pad_token": "<|pad|>"}, "the tokenizer pads with id 97"),
    ],
    ids=["token", "padding"],
)
def test_training_names_the_row_before_the_first_step(
    tiny_llama: Path, tmp_path: Path, content: str, special: dict[str, str], message: str
) -> None:
    base = _with_token(tiny_llama, tmp_path / "base", content, **special)
    folder = small_graft(base, tmp_path / "g")
    with pytest.raises(OtterError, match=message):
        train(folder, small_recipe(tmp_path, steps=1))
    assert not (folder / "training").exists()

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from otter_cli.demo import train_base
from otter_cli.demo.train_base import (
    CONTEXT,
    PAD,
    VOCABULARY,
    build,
    next_token_loss,
    pack,
    tiny_config,
)

OPTIONS = {"steps": 4, "texts": 300, "seed": 1}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "base"
    build(folder, **OPTIONS)
    return folder


@pytest.mark.slow
def test_the_folder_is_laid_out_as_checkpoints_are(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        "PROVENANCE.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_the_card_says_how_it_was_made(built: Path) -> None:
    card = json.loads((built / "PROVENANCE.json").read_text())
    assert card["held_out_loss"] < math.log(VOCABULARY)
    assert "synthetic" in card["what"]
    assert "--seed=1" in card["command"] and "--steps=4" in card["command"]
    assert card["versions"]["torch"] and card["train_text_tokens"] > 10_000


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", **OPTIONS)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes()


def test_rows_hold_whole_documents_and_padding_at_their_ends() -> None:
    rows = pack([[5] * 100, [6] * 100, [7] * 100])
    assert rows.shape == (2, CONTEXT)
    assert rows[0].tolist() == [5] * 100 + [6] * 100 + [PAD] * (CONTEXT - 200)
    assert rows[1].tolist() == [7] * 100 + [PAD] * (CONTEXT - 100)


def test_padding_is_no_part_of_the_loss() -> None:
    torch.manual_seed(0)
    model = train_base.LlamaForCausalLM(tiny_config()).eval()
    document = list(range(10, 60))
    with torch.no_grad():
        logits = model(torch.tensor([document])).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:]))
        padded = next_token_loss(model, pack([document]))
    torch.testing.assert_close(padded, alone)


def test_the_command_line_passes_its_options_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def record(out: Path, **options: int) -> dict[str, float]:
        seen.update(options, out=out)
        return {"held_out_loss": 1.0, "seconds": 2.0}

    monkeypatch.setattr(train_base, "build", record)
    monkeypatch.setattr(sys, "argv", ["train_base", str(tmp_path / "base"), "--steps", "7"])
    train_base.main()
    assert seen["steps"] == 7 and seen["out"] == tmp_path / "base"

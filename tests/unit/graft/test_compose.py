"""Two insertions in one folder: each gives its own signals, and is trained without the other."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.graft.surgery import compose, graft_onto, strip
from otter_cli.model.load import load_base
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.run import train
from tests.conftest import Otter, TinyCheckpoint
from tests.support.grafts import plan_for, random_graft
from tests.support.training import TOXICITY, small_recipe

IDS = torch.tensor([[1, 5, 6, 7, 2]])
SIZES = {"hidden": 8, "heads": 2, "ffn": 8}


def _two(base: Path, folder: Path) -> tuple[Path, Path]:
    one = random_graft(base, folder / "one", signals=("reward",), **SIZES)
    other = {"signals": ("toxicity",), "kv": "base", "seed": 1, "dtype": "BF16", **SIZES}
    return one, random_graft(base, folder / "other", **other)


def test_joined_grafts_say_what_each_says_alone(tiny_llama: Path, tmp_path: Path) -> None:
    one, other = _two(tiny_llama, tmp_path)
    manifest = compose(one, other, tmp_path / "both")
    assert [config.name for config in manifest.insertions] == ["main", "other"]
    both = OtterForCausalLM.from_pretrained(tmp_path / "both")
    with torch.no_grad():
        out = both(IDS)
        for folder in (one, other):
            alone = OtterForCausalLM.from_pretrained(folder)(IDS)
            for name, scores in alone.signals.items():
                # Not bit for bit: tensors have another alignment in the file, and kernels depend on
                # it.
                torch.testing.assert_close(out.signals[name], scores, rtol=1e-5, atol=1e-6)
        assert torch.equal(out.logits, load_base(tiny_llama).eval()(IDS).logits)
    strip(tmp_path / "both", tmp_path / "base")
    names = {path.name for path in tiny_llama.iterdir()}
    assert names == {path.name for path in (tmp_path / "base").iterdir()}


def test_a_second_insertion_leaves_the_first_as_it_was(tiny_llama: Path, tmp_path: Path) -> None:
    one, _ = _two(tiny_llama, tmp_path)
    plan = plan_for(tiny_llama, signals=("toxicity",), name="second", **SIZES)
    manifest = graft_onto(one, tmp_path / "more", plan)
    assert [config.name for config in manifest.insertions] == ["main", "second"]
    before, after = load_file(one / TENSORS_FILE), load_file(tmp_path / "more" / TENSORS_FILE)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if name not in before} == {slot.name for slot in plan.tensors}


def test_training_one_insertion_moves_nothing_of_the_other(
    tiny_llama: Path, tmp_path: Path
) -> None:
    compose(*_two(tiny_llama, tmp_path), tmp_path / "both")
    before = load_file(tmp_path / "both" / TENSORS_FILE)
    result = train(tmp_path / "both", small_recipe(tmp_path, {"toxicity": TOXICITY}))
    after = load_file(tmp_path / "both" / TENSORS_FILE)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("otter.other.") for name in moved)
    own = sum(t.numel() for name, t in after.items() if name.startswith("otter.other."))
    assert result.trained_parameters == own
    assert set(Manifest.read(tmp_path / "both").training) == {"toxicity"}


def test_what_cannot_be_joined_is_refused(
    tiny_llama: Path, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    one, _ = _two(tiny_llama, tmp_path)
    with pytest.raises(OtterError, match="two signals would be called 'reward'"):
        compose(one, one, tmp_path / "twice")
    elsewhere = random_graft(tiny_checkpoint("qwen3"), tmp_path / "qwen", signals=("toxicity",))
    with pytest.raises(OtterError, match="are grafts of different bases"):
        compose(one, elsewhere, tmp_path / "mixed")
    plan = plan_for(tiny_llama, signals=("toxicity",), **SIZES)
    with pytest.raises(OtterError, match="two insertions would be called 'main'"):
        graft_onto(one, tmp_path / "same", plan)
    copied = tmp_path / "copied"
    shutil.copytree(one, copied)
    with (copied / "generation_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(OtterError, match="is changed since it was grafted"):
        compose(copied, tmp_path / "other", tmp_path / "changed")
    assert not list(tmp_path.glob("twice*")) and not (tmp_path / "changed").exists()


def test_graft_and_compose_on_the_command_line(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    import json

    one = tmp_path / "one"
    assert otter_here("graft", tiny_llama, one).returncode == 0
    more = otter_here("graft", one, tmp_path / "two", "--signal", "toxicity", "--json")
    assert json.loads(more.stdout)["insertion"]["name"] == "main-2"
    assert otter_here("graft", tiny_llama, tmp_path / "b", "--signal", "toxicity").returncode == 0
    joined = otter_here("compose", one, tmp_path / "b", tmp_path / "both", "--json")
    assert json.loads(joined.stdout)["insertions"] == {"main": ["reward"], "b": ["toxicity"]}
    bad = otter_here("graft", tiny_llama, tmp_path / "x", "--name", "A.b")
    assert bad.returncode == 2 and "--name A.b" in bad.stderr

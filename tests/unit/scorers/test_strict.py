"""Whatever loads a model that scores refuses one whose tensors are not all there, and names the
tensor: a score never comes from a random head."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.benchmarks.tasks.pairs import load_judges
from otter_cli.cli.bench.rescore import parse_scorer
from otter_cli.core.errors import OtterError
from otter_cli.data.datasets import pad_batch
from otter_cli.model.load import load_base
from otter_cli.model.wide import load_wide
from otter_cli.scorers import text_scorer
from otter_cli.scorers.detoxify import DetoxifyScorer
from otter_cli.scorers.load import (
    load_classifier,
    load_graft,
    load_language_model,
    load_reward_model,
    scorer_folder,
)
from otter_cli.scorers.response_models import EncoderScorer
from otter_cli.scorers.text_scorer import load_labeller
from otter_cli.serving.wide.export import write_wide
from otter_cli.signals.config import parse_signal
from otter_cli.training.baselines.lora import LoraClassifierTrainable, LoraLanguageModelTrainable
from otter_cli.training.baselines.separate import SeparateTrainable, create_separate
from otter_cli.training.recipe import Recipe
from tests.support.benchmark_models import write_classifier, write_reward_model
from tests.support.damaged_tensors import DAMAGE, damage_file
from tests.support.grafts import random_graft

LAYER = "model.layers.1.self_attn.v_proj.weight"
BERT_LAYER = "bert.encoder.layer.0.attention.self.query.weight"
Folders = dict[str, Path]
# Baselines read their rank and the seed alone.
RECIPE = Recipe.model_validate(
    {
        "steps": 1,
        "signals": {"reward": {"objective": "bradley-terry", "train": {"path": "pairs.jsonl"}}},
        "baselines": {"lora": {"rank": 2}, "language_model": {"rank": 2}},
    }
)


@pytest.fixture(scope="module")
def sound(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Whole folders of every kind."""
    root = tmp_path_factory.mktemp("sound")
    graft = random_graft(tiny_llama, root / "graft", hidden=8, heads=2, signals=("reward",))
    write_wide(graft, root / "wide")
    create_separate(tiny_llama, root / "separate", parse_signal("reward"))
    vocabulary = parse_signal("q=action-reward")
    adapter = LoraLanguageModelTrainable(tiny_llama, root / "adapter", vocabulary, RECIPE, "cpu")
    adapter.write({})
    return {
        "base": tiny_llama,
        "graft": graft,
        "wide": root / "wide",
        "separate": root / "separate",
        "adapter": root / "adapter",
        "reward": write_reward_model(tiny_llama, root / "reward", seed=1),
        "classes": write_reward_model(tiny_llama, root / "classes", seed=1, num_labels=2),
        "detoxify": write_classifier(root / "detoxify"),
        "encoder": _write_encoder(root / "detoxify", root / "encoder"),
    }


def _write_encoder(classifier: Path, folder: Path) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(classifier)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(folder)
    return folder


def _teach(folder: Path) -> Any:
    text_scorer._load_prefix_values.cache_clear()
    return text_scorer.prefix_values(folder, "reward", pad_batch([[1, 5, 6]], 0))


def _label(folder: Path) -> Any:
    text_scorer._load_prefix_values.cache_clear()
    return load_labeller(folder, None, eos=True, device="cpu")(["a text"])


def _judge(folder: Path, sound: Folders) -> Any:
    return load_judges(
        load_graft(sound["graft"], "reward", device="cpu"), "reward", {"gold": folder}
    )


@dataclass(frozen=True)
class Entry:
    """What loads a copy of the sound folder `of`, whose tensors have these names."""

    of: str
    load: Callable[[Path, Folders], Any]
    head: str = "score.weight"
    layer: str = LAYER


def _signal(text: str = "reward") -> Any:
    return parse_signal(text)


ENTRIES = {
    "teacher": Entry("reward", lambda folder, _: _teach(folder)),
    "labeller, a reward model": Entry("reward", lambda folder, _: _label(folder)),
    "labeller, a classifier": Entry("classes", lambda folder, _: _label(folder)),
    "labeller, Detoxify": Entry(
        "detoxify", lambda folder, _: _label(folder), "classifier.weight", BERT_LAYER
    ),
    "separate model": Entry("separate", lambda folder, _: SeparateTrainable(folder, _signal())),
    "LoRA": Entry(
        "separate",
        lambda folder, others: LoraClassifierTrainable(
            others["base"], folder, _signal(), RECIPE, "cpu"
        ),
    ),
    "LoRA's base": Entry(
        "base",
        lambda folder, others: LoraLanguageModelTrainable(
            folder, folder / "to", _signal("q=action-reward"), RECIPE, "cpu"
        ),
        "lm_head.weight",
    ),
    "benchmarks, a reward model": Entry(
        "reward", lambda folder, _: load_reward_model(folder, device="cpu")
    ),
    "benchmarks, a language model": Entry(
        "base",
        lambda folder, _: load_language_model(folder, device="cpu"),
        "lm_head.weight",
    ),
    "benchmarks, an adapter": Entry(
        "adapter",
        lambda folder, _: load_language_model(folder, device="cpu"),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
        "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight",
    ),
    "judge": Entry("reward", _judge),
    "rescore, a reward model": Entry(
        "reward", lambda folder, _: parse_scorer(f"reward-model:{folder}", "cpu")
    ),
    "rescore, Detoxify": Entry(
        "detoxify",
        lambda folder, _: parse_scorer(f"detoxify:{folder}", "cpu"),
        "classifier.bias",
        BERT_LAYER,
    ),
    "scorer, Detoxify": Entry(
        "detoxify", lambda folder, _: DetoxifyScorer(folder), "classifier.weight", BERT_LAYER
    ),
    "scorer, an encoder": Entry(
        "encoder",
        lambda folder, _: EncoderScorer(folder),
        "embeddings.word_embeddings.weight",
        BERT_LAYER.removeprefix("bert."),
    ),
    "base": Entry("base", lambda folder, _: load_base(folder), "lm_head.weight"),
    "wide export": Entry("wide", lambda folder, _: load_wide(folder), "lm_head.weight"),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_whole_folder_loads(sound: Folders, tmp_path: Path, entry: str) -> None:
    """Else the refusals below would show nothing."""
    chosen = ENTRIES[entry]
    folder = Path(shutil.copytree(sound[chosen.of], tmp_path / "copy"))
    assert chosen.load(folder, sound) is not None


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_loader_names_the_tensor(
    sound: Folders, tmp_path: Path, entry: str, damage: str
) -> None:
    chosen = ENTRIES[entry]
    folder = Path(shutil.copytree(sound[chosen.of], tmp_path / "copy"))
    named = damage_file(folder, damage, chosen.head, chosen.layer)
    with pytest.raises(OtterError) as caught:
        chosen.load(folder, sound)
    # peft leaves the adapter's own beginning out of some names.
    assert named in caught.value.what
    assert str(folder) in caught.value.what and caught.value.hint


def test_a_language_model_does_not_label(tiny_llama: Path) -> None:
    with pytest.raises(OtterError, match=r"missing keys: score\.weight"):
        _label(tiny_llama)


def test_an_encoder_without_its_pooler_loads(sound: Folders, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(sound["encoder"], tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("pooler.")}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert EncoderScorer(folder)


@pytest.mark.parametrize("damage", ["missing layer tensor", "unexpected tensor", "wrong shape"])
def test_an_encoder_leaves_the_head_of_a_whole_model_unread_and_nothing_else(
    sound: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = Path(shutil.copytree(sound["base"], tmp_path / "copy"))
    assert EncoderScorer(folder)
    monkeypatch.setattr("tests.support.damaged_tensors.EXTRA", "model.layers.0.extra.weight")
    named = damage_file(folder, damage, "", LAYER)
    with pytest.raises(OtterError) as caught:
        EncoderScorer(folder)
    assert named.removeprefix("model.") in caught.value.what


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_tensors_own(sound: Folders, tmp_path: Path, stored: torch.dtype) -> None:
    """Whatever config.json says."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(sound["reward"], tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.to(stored) for n, t in tensors.items()}, folder / "model.safetensors")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    assert '"float16"' in config.read_text()
    assert load_classifier(folder).dtype == stored


def test_an_adapter_beside_weights_does_not_load_another_model(
    sound: Folders, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound["reward"], tmp_path / "copy"))
    shutil.copy(sound["adapter"] / "adapter_config.json", folder)
    with pytest.raises(OtterError, match=r"adapter_config\.json beside a model's weights"):
        load_reward_model(folder, device="cpu")


@pytest.mark.parametrize("text", ["nowhere", "org/name", "models/reward"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("hub"))
    with pytest.raises(OtterError, match="is not a folder"):
        load_classifier(text)


def test_a_revision_of_the_hub_is_fetched(
    sound: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    snapshot = tmp_path / ("ab" * 20)
    shutil.copytree(sound["reward"], snapshot)

    def download(name: str, *, revision: str, **_: Any) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert scorer_folder("org/name@v1") == snapshot
    assert load_reward_model("org/name@v1", device="cpu").model.config.num_labels == 1
    assert set(asked) == {("org/name", "v1")}

"""The real Detoxify class on a real checkpoint, and folders that are not what they say."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from otter_cli.benchmarks.scorers import Exchange, score_all
from otter_cli.benchmarks.scorers.detoxify import DetoxifyScorer
from otter_cli.core.errors import OtterError

TEXTS = [
    "you are a stupid idiot",
    "thank you, that was kind",
    "",
    "get lost, moron, and never come back here",
]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "detoxify-mini"


@pytest.fixture(scope="module")
def scorer(folder: Path) -> DetoxifyScorer:
    return DetoxifyScorer(folder)


def scores(scorer: DetoxifyScorer, texts: list[str], batch: int = 32) -> dict[str, list[float]]:
    exchanges = [Exchange(str(i), "prompt", text) for i, text in enumerate(texts)]
    return score_all(scorer, exchanges, lambda count: None, batch=batch)


def reference(folder: Path, text: str) -> list[float]:
    """The classifier by transformers alone, one text at a time."""
    saved = torch.load(folder / "detoxify-mini.ckpt", weights_only=False)["state_dict"]
    bert = BertForSequenceClassification(BertConfig.from_pretrained(folder))
    assert not bert.load_state_dict(saved, strict=False).missing_keys
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.sigmoid(bert.eval()(**tokenizer(text, return_tensors="pt")).logits)[0].tolist()


def test_scores_are_the_classifiers_own(scorer: DetoxifyScorer, folder: Path) -> None:
    found = scores(scorer, TEXTS)
    for i, text in enumerate(TEXTS):
        ours = [found[label][i] for label in scorer.record.labels]
        assert ours == pytest.approx(reference(folder, text), abs=1e-5)
    assert found["toxicity"][0] > 0.9 > 0.1 > found["toxicity"][1]


def test_a_batch_of_one_is_as_good_as_a_batch_of_four(scorer: DetoxifyScorer) -> None:
    alone, together = scores(scorer, TEXTS, batch=1), scores(scorer, TEXTS, batch=4)
    for label in scorer.record.labels:
        assert alone[label] == pytest.approx(together[label], abs=1e-5)


def test_an_insult_after_512_tokens_is_seen(scorer: DetoxifyScorer) -> None:
    kind = "this is a fine day and we walk along the river . " * 120
    clean, toxic = scores(scorer, [kind, kind + "you stupid idiot"])["toxicity"]
    assert clean < 0.2 and toxic > 0.5


def test_it_warns_that_it_unpickles(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    DetoxifyScorer(folder)
    assert "trusted files only" in capfd.readouterr().err


def test_the_digest_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert DetoxifyScorer(copy).record.digest == DetoxifyScorer(folder).record.digest
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=False)
    loaded["state_dict"]["classifier.bias"] += 1
    torch.save(loaded, copy / "detoxify-mini.ckpt")
    assert DetoxifyScorer(copy).record.digest != DetoxifyScorer(folder).record.digest


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=False)
    del loaded["state_dict"]["classifier.weight"]
    torch.save(loaded, copy / "detoxify-mini.ckpt")
    with pytest.raises(OtterError, match="lacks 1 tensors of its classifier, classifier.weight"):
        DetoxifyScorer(copy)


def test_folders_that_are_no_detoxify_folders(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="no .ckpt file"):
        DetoxifyScorer(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"no pickle")
    with pytest.raises(OtterError, match=r"no config.json"):
        DetoxifyScorer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OtterError, match="does not load as a Detoxify checkpoint"):
        DetoxifyScorer(tmp_path)

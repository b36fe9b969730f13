"""The real Detoxify class on a real checkpoint, and folders that are not what they say."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detoxify.detoxify import MODEL_URLS
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.scorers.detoxify import DetoxifyScorer, load_released_detoxify, pickle_allowed
from otter_cli.scorers.scorer import Exchange, score_all
from otter_cli.scorers.text_scorer import load_labeller

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
    saved = torch.load(folder / "detoxify-mini.ckpt", weights_only=True)["state_dict"]
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


class Pickled:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def malicious(folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=True)
    torch.save({**loaded, "extra": Pickled(tmp_path / "ran")}, copy / "detoxify-mini.ckpt")
    return copy


def test_code_in_a_pickle_is_not_run(malicious: Path, tmp_path: Path) -> None:
    for load in (
        lambda: DetoxifyScorer(malicious),
        lambda: load_labeller(malicious, None, eos=True, device="cpu"),
    ):
        with pytest.raises(OtterError, match="loading it can run code") as caught:
            load()
        assert (
            "posix.mkdir of Python" in caught.value.what and "--allow-pickle" in caught.value.hint
        )
    assert not (tmp_path / "ran").exists()


def test_code_in_a_pickle_runs_where_this_run_allows_it(
    malicious: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pickle_allowed(True):
        allowed = DetoxifyScorer(malicious)
    assert (tmp_path / "ran").exists()
    assert "--allow-pickle runs it" in capfd.readouterr().err
    assert scores(allowed, TEXTS)["toxicity"][0] > 0.9
    with pytest.raises(OtterError, match="loading it can run code"):
        DetoxifyScorer(malicious)


def test_an_old_format_of_torch_is_read_without_code(folder: Path, tmp_path: Path) -> None:
    """Detoxify's first releases were saved before torch wrote zip archives."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=True)
    path = copy / "detoxify-mini.ckpt"
    torch.save(loaded, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    assert scores(DetoxifyScorer(copy), TEXTS)["toxicity"][0] > 0.9


@pytest.fixture
def released(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], None]:
    """Publishes a checkpoint as the released one, whose configuration lies in a local folder."""

    def publish(more: dict[str, Any]) -> None:
        loaded = torch.load(folder / "detoxify-mini.ckpt", weights_only=True)
        loaded["config"]["arch"]["args"]["model_type"] = str(folder)
        torch.save({**loaded, **more}, tmp_path / "published")
        digest = sha256_file(tmp_path / "published")[:8]
        url = f"https://nowhere/original-{digest}.ckpt"
        monkeypatch.setitem(MODEL_URLS, "original", url)

    def download(url: str, to: str, digest: str) -> None:
        shutil.copy(tmp_path / "published", to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return publish


def test_the_released_model_runs_no_code(released: Any, tmp_path: Path) -> None:
    released({})
    assert load_released_detoxify("cpu").predict(TEXTS)["toxicity"][0] > 0.9
    released({"extra": Pickled(tmp_path / "ran")})
    with pytest.raises(OtterError, match="loading it can run code"):
        load_released_detoxify("cpu")
    assert not (tmp_path / "ran").exists()


def test_another_file_in_the_download_cache_is_not_the_released_one(
    released: Any, tmp_path: Path
) -> None:
    released({})
    load_released_detoxify("cpu")
    (cached,) = (tmp_path / "hub" / "checkpoints").iterdir()
    cached.write_bytes(cached.read_bytes() + b"x")
    with pytest.raises(OtterError, match="is not the released file"):
        load_released_detoxify("cpu")


@pytest.mark.parametrize("name", ["detoxify-mini", "detoxify-minilm"])
def test_real_checkpoints_need_no_pickle(
    shared: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = scores(DetoxifyScorer(shared / "models" / name), TEXTS)["toxicity"]
    assert found[0] > 0.9 > 0.1 > found[1]
    assert "pickle" not in capfd.readouterr().err


def test_scores_are_those_of_the_librarys_own_loader(
    scorer: DetoxifyScorer, folder: Path, tmp_path: Path
) -> None:
    from detoxify import Detoxify

    loaded = torch.load(folder / "detoxify-mini.ckpt", weights_only=True)
    loaded["config"]["arch"]["args"]["model_type"] = str(folder)
    torch.save(loaded, tmp_path / "copy.ckpt")
    stock = Detoxify(checkpoint=str(tmp_path / "copy.ckpt"), huggingface_config_path=str(folder))
    assert scores(scorer, TEXTS, batch=4) == stock.predict(TEXTS)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("model_name", "pipeline", "'pipeline' as its model"),
        ("model_name", "AutoModelForSequenceClassification", "as its model"),
        ("model_name", "RobertaForSequenceClassification", "config.json is of a bert"),
        ("tokenizer_name", "pipeline", "'pipeline' as its tokenizer"),
    ],
)
def test_classes_that_a_checkpoint_names(
    folder: Path, tmp_path: Path, key: str, value: str, match: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=True)
    loaded["config"]["arch"]["args"][key] = value
    torch.save(loaded, copy / "detoxify-mini.ckpt")
    with pytest.raises(OtterError, match=match):
        DetoxifyScorer(copy)


def test_the_digest_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert DetoxifyScorer(copy).record.digest == DetoxifyScorer(folder).record.digest
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=True)
    loaded["state_dict"]["classifier.bias"] += 1
    torch.save(loaded, copy / "detoxify-mini.ckpt")
    assert DetoxifyScorer(copy).record.digest != DetoxifyScorer(folder).record.digest


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    loaded = torch.load(copy / "detoxify-mini.ckpt", weights_only=True)
    del loaded["state_dict"]["classifier.weight"]
    torch.save(loaded, copy / "detoxify-mini.ckpt")
    with pytest.raises(OtterError, match=r"loads with missing keys: classifier\.weight"):
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

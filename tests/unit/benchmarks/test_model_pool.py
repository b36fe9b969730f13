"""Models that may be compared, and folders that are refused."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from otter_cli.benchmarks.model_pool import load_graft_and_task_head
from otter_cli.core.errors import OtterError
from otter_cli.scorers.load import LoadedGraft, load_graft, load_reward_model, model_record
from tests.conftest import TinyCheckpoint
from tests.support.benchmark_models import BenchmarkModels, write_reward_model
from tests.support.grafts import random_graft


def test_a_pair_on_one_base(
    contestants: BenchmarkModels, grafts: tuple[LoadedGraft, LoadedGraft]
) -> None:
    graft, head = grafts
    assert graft.record.base == head.record.base
    assert graft.record.weights != head.record.weights
    stored = load_file(contestants.graft / "model.safetensors").values()
    assert graft.base_bytes == head.base_bytes == sum(tensor.nbytes for tensor in stored)
    assert graft.bytes > head.bytes > head.base_bytes


def test_an_untrained_signal_is_warned_about(
    contestants: BenchmarkModels, capfd: pytest.CaptureFixture[str]
) -> None:
    load_graft(contestants.graft, "reward", device="cpu")
    assert "signal 'reward' is untrained" in capfd.readouterr().err


def test_a_signal_that_is_not_there(contestants: BenchmarkModels) -> None:
    with pytest.raises(OtterError, match="has no signal 'politeness'") as caught:
        load_graft(contestants.graft, "politeness", device="cpu")
    assert "reward, toxicity, future" in caught.value.hint


def test_grafts_of_two_bases_are_not_compared(
    contestants: BenchmarkModels, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    other = random_graft(tiny_checkpoint("llama", seed=9), tmp_path / "other", hidden=0)
    with pytest.raises(OtterError, match="grafts of different bases"):
        load_graft_and_task_head(contestants.graft, other, "reward")


def test_a_stream_is_no_task_head(contestants: BenchmarkModels) -> None:
    with pytest.raises(OtterError, match="has a stream of its own"):
        load_graft_and_task_head(contestants.graft, contestants.graft, "reward")


def test_a_base_that_changed_under_the_graft_is_refused(
    contestants: BenchmarkModels, tmp_path: Path
) -> None:
    changed = shutil.copytree(contestants.graft, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    with pytest.raises(OtterError, match="differs from the recorded"):
        load_graft(changed, "reward", device="cpu")


def test_a_reward_model_without_its_head_is_refused(
    contestants: BenchmarkModels, tmp_path: Path
) -> None:
    headless = shutil.copytree(contestants.gold, tmp_path / "headless")
    tensors = load_file(headless / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(OtterError, match=r"missing keys: score.weight"):
        load_reward_model(headless, device="cpu")


def test_a_base_is_no_reward_model(tiny_llama: Path) -> None:
    with pytest.raises(OtterError, match="missing keys|unexpected keys"):
        load_reward_model(tiny_llama, device="cpu")


def test_two_outputs_are_no_reward(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_reward_model(tiny_llama, tmp_path / "two", seed=0, num_labels=2)
    with pytest.raises(OtterError, match="has 2 outputs"):
        load_reward_model(folder, device="cpu")


def test_the_dtype_is_the_files_and_not_the_configurations(
    contestants: BenchmarkModels, tmp_path: Path
) -> None:
    copy = shutil.copytree(contestants.gold, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model, _, _ = load_reward_model(copy, device="cpu")
    assert str(model.dtype) == "torch.float32"


def test_records_follow_the_weights(contestants: BenchmarkModels) -> None:
    one, two = (
        model_record(folder, "reward-model")
        for folder in (contestants.gold, contestants.reward_model)
    )
    assert one.weights != two.weights
    assert one.weights == model_record(contestants.gold, "reward-model").weights

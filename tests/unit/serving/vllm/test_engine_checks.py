"""Engines that the plugin cannot serve are refused as the model loads, by name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.engine_checks import check_engine, check_export_folder, read_insertions
from otter_cli.serving.vllm.export import export_vllm
from tests.support.grafts import random_graft


def model(**changes: Any) -> Any:
    usual = {"enable_prompt_embeds": False, "max_logprobs": 20, "hf_config": SimpleNamespace()}
    return SimpleNamespace(**{**usual, **changes})


def engine(**changes: Any) -> Any:
    usual: dict[str, Any] = {
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
        "use_v2_model_runner": False,
        "speculative_config": None,
        "lora_config": None,
        "model_config": model(),
    }
    return SimpleNamespace(**{**usual, **changes})


def test_a_usual_engine_is_accepted() -> None:
    check_engine(engine())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline stages"),
        ({"use_v2_model_runner": True}, "second model runner"),
        ({"speculative_config": SimpleNamespace(method="ngram")}, "own future heads, not by"),
        ({"lora_config": object()}, "LoRA"),
        ({"model_config": model(enable_prompt_embeds=True)}, "prompt embeddings"),
        ({"model_config": model(max_logprobs=-1)}, "whole vocabulary"),
        ({"model_config": model(hf_config=SimpleNamespace(llama_4_scaling={}))}, "llama_4"),
    ],
)
def test_what_the_plugin_does_not_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OtterError, match=message):
        check_engine(engine(**changes))


def test_a_configuration_that_is_no_export_is_refused() -> None:
    with pytest.raises(OtterError, match="describes no insertion"):
        read_insertions(SimpleNamespace())


def drafting(width: int) -> Any:
    config = SimpleNamespace(hf_config=SimpleNamespace(hidden_size=width))
    return SimpleNamespace(method="medusa", draft_model_config=config)


def test_a_drafter_reads_the_states_of_its_own_graft() -> None:
    described = {"name": "main", "hidden": 8, "heads": 0, "kv_heads": 0, "ffn": 8, "layers": []}
    served = SimpleNamespace(hidden_size=64, otter={"insertions": [described]})
    grafted = model(hf_config=served)
    check_engine(engine(speculative_config=drafting(72), model_config=grafted))
    with pytest.raises(OtterError, match="states of 64 units, this graft's have 72"):
        check_engine(engine(speculative_config=drafting(64), model_config=grafted))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "otter.safetensors"])
def test_an_export_that_changed_is_not_served(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    graft, served = tmp_path / "graft", tmp_path / "served"
    random_graft(tiny_llama, graft, hidden=8, heads=2, ffn=16)
    export_vllm(graft, served)
    check_export_folder(str(served))
    data = bytearray((served / name).read_bytes())
    data[-1] ^= 1
    (served / name).unlink()
    (served / name).write_bytes(data)
    with pytest.raises(OtterError, match=name):
        check_export_folder(str(served))
    check_export_folder("org/name")


def test_the_drafter_of_an_export_is_its_own_and_no_other_file_is(
    tiny_llama: Path, tmp_path: Path
) -> None:
    graft, served = tmp_path / "graft", tmp_path / "served"
    random_graft(tiny_llama, graft, hidden=8, heads=2, ffn=16, signals=("future:2,plain",))
    export_vllm(graft, served, draft="future")
    check_export_folder(str(served))
    drafter = served / "drafter"
    (drafter / "added.safetensors").write_bytes((drafter / "model.safetensors").read_bytes())
    with pytest.raises(OtterError, match="added"):
        check_export_folder(str(served))

"""Failures while an answer is written: the request that fails says so, and the server goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from otter_cli.decoding.shared_batch import SharedBatch
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import plan_for, random_graft
from tests.support.live_server import Live, live_server
from tests.unit.serving.embedded.test_answers import chat, complete

FORM: dict[str, Any] = {"hidden": 8, "heads": 2, "ffn": 16, "signals": ("reward", "kind=value")}


@pytest.fixture(scope="module")
def poisoned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft without a chat template, whose reward is NaN everywhere."""
    out = random_graft(tiny_llama, tmp_path_factory.mktemp("poison") / "toy", **FORM)
    tensors = OtterForCausalLM.from_pretrained(out).inserted_state_dict()
    values = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    for name in values:
        if ".signals.reward." in name:
            values[name].flat[0] = np.nan
    update_tensors(out, [plan_for(tiny_llama, **FORM)], Manifest.read(out), values)
    return out


def test_a_signal_without_values_is_null_and_nothing_is_decided_by_it(poisoned: Path) -> None:
    with live_server(poisoned) as server:
        client = server.client()
        plain = complete(client)
        named = complete(client, extra_body={"signals": ["reward", "kind"]})
        assert named.choices[0].text == plain.choices[0].text
        signals = named.choices[0].model_extra["signals"]
        assert set(signals["reward"]["tokens"]) == {None} and signals["reward"]["last"] is None
        assert None not in signals["kind"]["tokens"]
        for body in ({"stop_when": "reward>0"}, {"guide": {"reward": 1.0}}):
            with pytest.raises(openai.InternalServerError) as failed:
                complete(client, extra_body=body)
            assert failed.value.body["type"] == "server_error"
            assert "not finite" in failed.value.body["message"]
            with pytest.raises(openai.APIError, match="not finite"):
                list(complete(client, stream=True, extra_body=body))
        assert complete(client).choices[0].text == plain.choices[0].text
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            chat(client)


def test_an_unexpected_failure_ends_its_batch_and_not_the_server(
    live: Live, client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = chat(client).choices[0].message.content

    def fail(batch: SharedBatch) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(SharedBatch, "step", fail)
        with pytest.raises(openai.InternalServerError) as failed:
            chat(client)
    assert "its log says why" in failed.value.body["message"]
    assert "out of memory" not in failed.value.body["message"]
    assert "RuntimeError: out of memory" in capfd.readouterr().err
    assert chat(client).choices[0].message.content == whole
    live.wait_until_idle()

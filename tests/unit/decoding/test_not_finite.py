"""NaN and infinity in inserted tensors: the base's text stays, signals have no value, and nothing
is decided by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import otter_cli
from otter_cli.cli.generate_view import text_record, texts_view
from otter_cli.core.errors import OtterError
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.bounds import Gate, SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.finite import class_probabilities, finite_or_none, non_finite_signals
from tests.support.grafts import plan_for, random_graft

PROMPT = [5, 9, 33]
SHORT = Sampling(8, ignore_eos=True)
DRAWN = Sampling(8, temperature=1.0, ignore_eos=True)
SIGNALS = ("reward", "toxicity", "future:2,plain", "action-reward")
FORM: dict[str, Any] = {"hidden": 8, "heads": 2, "ffn": 16, "signals": SIGNALS}
VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
# The embedding of a token in the prompt, a matrix of a layer, every head of a signal.
PLACES: dict[str, Callable[[str], bool]] = {
    "embedding": lambda name: name.endswith("embedding.weight"),
    "layer": lambda name: ".layers.1." in name and name.endswith("weight"),
    "head": lambda name: ".signals." in name,
}


@pytest.fixture(scope="module", params=[(p, v) for p in PLACES for v in VALUES], ids=str)
def folder(request: Any, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, value = request.param
    out = random_graft(tiny_llama, tmp_path_factory.mktemp("poison") / "g", **FORM)
    tensors = OtterForCausalLM.from_pretrained(out).inserted_state_dict()
    values = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    changed = [name for name in values if PLACES[place](name)]
    assert changed
    for name in changed:
        if place == "embedding":
            values[name][PROMPT[0]] = VALUES[value]
        else:
            values[name].flat[0] = VALUES[value]
    update_tensors(out, [plan_for(tiny_llama, **FORM)], Manifest.read(out), values)
    return out


@pytest.fixture(scope="module")
def poisoned(folder: Path) -> OtterForCausalLM:
    return OtterForCausalLM.from_pretrained(folder)


def _theirs(model: OtterForCausalLM) -> list[int]:
    tokens = torch.tensor([PROMPT])
    out = model.base.generate(tokens, max_new_tokens=8, do_sample=False, eos_token_id=[])
    return out[0, len(PROMPT) :].tolist()


def test_the_text_is_the_base_s_and_signals_have_no_value(
    poisoned: OtterForCausalLM, tiny_tokenizer: Any
) -> None:
    for signals in ((), ("reward", "toxicity")):
        (row,) = generate(poisoned, [PROMPT], SHORT, signals=signals)
        assert row.tokens == _theirs(poisoned)
    assert non_finite_signals(row.signals) == ["reward", "toxicity"]
    record = text_record("a", PROMPT, row, tiny_tokenizer, {})
    assert record["signals"] == {"reward": [None] * 8, "toxicity": [None] * 8}
    assert texts_view([record])
    # Drafts may be wrong; the text that stays is the base's.
    (drafted,) = generate(poisoned, [PROMPT], SHORT, drafter=FutureDrafter())
    assert drafted.tokens == row.tokens


@pytest.mark.parametrize("signal", ["reward", "toxicity"])
def test_nothing_is_decided_by_them(poisoned: OtterForCausalLM, signal: str) -> None:
    bound = SignalBound(signal, 0.5)
    for options in (
        {"guide": SignalGuide(signal, 1.0)},
        {"guide": SignalGuide(signal, 1.0), "drafter": FutureDrafter()},
        {"guide": VocabularyGuide("action-reward", 1.0)},
        {"guide": VocabularyGuide("action-reward", 1.0, candidates=0)},
        {"guide": VocabularyGuide("action-reward", 1.0), "gate": Gate(signal=bound)},
        {"stops": Stops(signals=(bound,))},
        {"stops": Stops(signals=(SignalBound(signal, 0.5, above=False),))},
    ):
        with pytest.raises(OtterError, match="not finite: nothing can be decided"):
            generate(poisoned, [PROMPT], SHORT, **options)  # type: ignore[arg-type]
    with pytest.raises(OtterError, match=f"signal '{signal}', which best of n goes by, is not f"):
        best_of(poisoned, [PROMPT], DRAWN, BestOf(2, signal=signal))


def test_a_gate_names_its_signal(poisoned: OtterForCausalLM) -> None:
    gate = Gate(signal=SignalBound("toxicity", 0.5))
    guide = SignalGuide("reward", 1.0)
    with pytest.raises(OtterError, match="signal 'toxicity' of toxicity>0.5 is not finite"):
        generate(poisoned, [PROMPT], SHORT, guide=guide, gate=gate)


def test_python_gives_nan_and_one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    otter, names = otter_cli.load(folder), ["reward", "toxicity"]
    capsys.readouterr()
    # The token of "2" is the one whose embedding is broken.
    answer = otter.generate("2ab", signals=names, max_new_tokens=4)
    scored = otter.score("2ab", signals=names)
    told = capsys.readouterr().err
    assert all(np.isnan(values).all() for values in answer.signals.values())
    assert all(np.isnan(values[1:]).all() for values in scored.signals.values())
    assert told.count("signals reward, toxicity. The text is the base's") == 2


def test_generate_gives_the_text_null_and_one_warning(otter_here: Any, folder: Path) -> None:
    shown = otter_here("generate", folder, "2ab", "--max-new-tokens", "4", "--json",
                       "--signal", "reward", "--signal", "toxicity")  # fmt: skip
    assert shown.returncode == 0
    data = json.loads(shown.stdout, parse_constant=pytest.fail)
    assert data["signals"] == {"reward": [None] * 4, "toxicity": [None] * 4}
    assert shown.stderr.count("signals reward, toxicity") == 1
    options = ("--max-new-tokens", "4", "--signal", "reward", "--details")
    page = otter_here("generate", folder, "2ab", *options)
    assert page.returncode == 0
    assert "no finite value" in page.stdout and "none" in page.stdout
    refused = otter_here("generate", folder, "2ab", "--reject", "reward>1", "--max-new-tokens", "4")
    assert refused.returncode == 2 and "not finite: nothing can be decided" in refused.stderr


def test_one_token_s_embedding_leaves_other_texts_alone(tiny_llama: Path, tmp_path: Path) -> None:
    """A row that never reads the broken token is guided; one that does is an error."""
    folder = random_graft(tiny_llama, tmp_path / "g", **FORM)
    tensors = OtterForCausalLM.from_pretrained(folder).inserted_state_dict()
    values = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    values["otter.main.embedding.weight"][96] = np.nan
    update_tensors(folder, [plan_for(tiny_llama, **FORM)], Manifest.read(folder), values)
    model = OtterForCausalLM.from_pretrained(folder)
    (fine,) = generate(model, [PROMPT], Sampling(1), signals=("reward",))
    assert non_finite_signals(fine.signals) == []
    rows = generate(model, [PROMPT, [*PROMPT, 96]], SHORT, signals=("reward",))
    assert non_finite_signals(rows[1].signals) == ["reward"]
    with pytest.raises(OtterError, match="not finite"):
        generate(model, [[*PROMPT, 96]], SHORT, stops=Stops(signals=(SignalBound("reward", 9.0),)))


def test_an_infinite_logit_is_no_certainty() -> None:
    logits = torch.tensor([0.0, -0.0, 30.0, -3.5, torch.inf, -torch.inf, torch.nan])
    got = class_probabilities(logits)
    assert torch.equal(got[:4], logits[:4].sigmoid())
    assert got[4:].isnan().all()
    assert finite_or_none([1.0, [np.nan, 2.0], np.inf]) == [1.0, [None, 2.0], None]

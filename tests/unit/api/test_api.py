"""The Python interface: `from otter_cli import load`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otter_cli import GeneratedText, Otter, load
from otter_cli.api.generated_text import ScoredText
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import render_chat
from otter_cli.data.encoding import Encoder
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said
from tests.support.grafts import chat_base, random_graft

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = chat_base(tiny_llama, tmp_path_factory.mktemp("api") / "base")
    return random_graft(base, base.parent / "graft", hidden=8, heads=2, ffn=16)


@pytest.fixture(scope="module")
def model(folder: Path) -> Otter:
    return load(folder)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_text_goes_on_as_transformers_writes_it(model: Otter, stock: Any, folder: Path) -> None:
    answer = model.generate("hello", max_new_tokens=12)
    ids = AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt")
    expected = stock.generate(**ids, max_new_tokens=12, do_sample=False)
    assert isinstance(answer, GeneratedText)
    assert answer.token_ids == expected[0, ids["input_ids"].shape[1] :].tolist()
    assert answer.text == model.tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_each_token_has_its_signals_as_arrays(model: Otter) -> None:
    answer = model.generate("hello", max_new_tokens=9)
    assert set(answer.signals) == {"reward", "toxicity"}
    for values in (*answer.signals.values(), answer.logprobs):
        assert isinstance(values, np.ndarray) and values.shape == (9,)
    assert len(answer.tokens) == len(answer) == 9


def test_signals_equal_one_forward_pass_over_the_whole_text(model: Otter, folder: Path) -> None:
    answer = model.generate("hello", max_new_tokens=9)
    ids = AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]
    with torch.no_grad():
        whole = model(torch.tensor([[*ids, *answer.token_ids]])).signals["reward"][0]
    expected = whole[len(ids) :].float().numpy()
    np.testing.assert_allclose(answer.signals["reward"], expected, rtol=1e-4, atol=1e-4)


def test_a_call_gives_the_bases_logits(model: Otter, stock: Any) -> None:
    ids = torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)


def test_messages_go_through_the_chat_template(model: Otter) -> None:
    ids = model.tokenizer.apply_chat_template(
        MESSAGES, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    chat = model.generate(MESSAGES, max_new_tokens=8)
    assert chat.token_ids == model.generate(ids, max_new_tokens=8).token_ids
    assert chat.token_ids != model.generate("hello", max_new_tokens=8).token_ids


def test_a_guide_changes_the_text_and_strength_0_does_not(model: Otter) -> None:
    plain = model.generate("hello", max_new_tokens=16).token_ids
    assert model.generate("hello", guide={"reward": 0.0}, max_new_tokens=16).token_ids == plain
    assert model.generate("hello", guide={"reward": 50.0}, max_new_tokens=16).token_ids != plain


@pytest.mark.parametrize("name", ["rewrd", "toxicity/nothing"])
def test_an_unknown_guide_is_refused(model: Otter, name: str) -> None:
    with pytest.raises(OtterError):
        model.generate("hello", guide={name: 1.0})


def test_a_batch_gives_a_list(model: Otter) -> None:
    texts = model.generate(["hello", "good day"], max_new_tokens=6)
    assert [text.token_ids for text in texts] == [
        model.generate(prompt, max_new_tokens=6).token_ids for prompt in ("hello", "good day")
    ]
    drawn = model.generate("hello", max_new_tokens=6, do_sample=True, num_return_sequences=3)
    assert len({tuple(text.token_ids) for text in drawn}) > 1


def test_padded_tensors_with_a_mask(model: Otter) -> None:
    ids = torch.tensor([[0, 0, 5, 9], [3, 4, 5, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    texts = model.generate(ids, attention_mask=mask, max_new_tokens=6)
    assert texts[0].token_ids == model.generate([5, 9], max_new_tokens=6).token_ids
    with pytest.raises(OtterError, match="shape"):
        model.generate(ids, attention_mask=mask[:, :2])


def test_a_transformers_streamer_gets_prompt_tokens_and_end(model: Otter) -> None:
    class Kept:
        def __init__(self) -> None:
            self.put_, self.ended = [], False

        def put(self, value: torch.Tensor) -> None:
            self.put_.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    streamer = Kept()
    answer = model.generate([5, 9], max_new_tokens=4, streamer=streamer)
    assert streamer.put_ == [[5, 9], *[[token] for token in answer.token_ids]] and streamer.ended


def test_stop_strings_and_rejection_end_a_text(model: Otter) -> None:
    plain = model.generate("hello", max_new_tokens=20)
    part = "".join(plain.tokens[2:5])
    stopped = model.generate("hello", max_new_tokens=20, stop_strings=part)
    assert stopped.finish == "stop" and len(stopped) < len(plain)
    bound = float(np.median(plain.signals["reward"]))
    rejected = model.generate("hello", max_new_tokens=20, reject=[f"reward>{bound}"])
    assert rejected.finish == "rejected" and rejected.message


def test_scores_of_a_text(model: Otter) -> None:
    scored = model.score("hello")
    ids = torch.tensor([scored.token_ids])
    with torch.no_grad():
        expected = model(ids).signals["reward"][0]
    np.testing.assert_allclose(scored.signals["reward"], expected.float().numpy(), rtol=1e-6)
    assert len(scored.tokens) == ids.shape[1]
    with pytest.raises(OtterError, match="one text"):
        model.score(["a", "b"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_dialogue_is_scored_where_training_reads_it(
    model: Otter, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Not after a prompt for one more answer, which the template would write."""
    tokenizer = chat_tokenizer(model.tokenizer, TEMPLATES[template])
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    dialogue = said("hi", "yo")
    ids = tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=False)
    data = Encoder(tokenizer, 99)([render_chat(tokenizer, dialogue)])
    scored = model.score(dialogue)
    assert scored.token_ids == ids[: data.lengths[0]]
    assert scored.token_ids[-1] == (
        tokenizer.eos_token_id if tokenizer.eos_token_id in ids else ids[-1]
    )
    assert len(scored.signals["reward"]) == len(scored.token_ids)


def test_a_notebook_shows_coloured_escaped_tokens(model: Otter) -> None:
    scored = model.score("<b>hello")
    shown = scored._repr_html_()
    assert shown.count("<span") == len(scored) and "<b>" not in shown


@pytest.mark.parametrize("prompt", [7, [], None])
def test_a_prompt_of_a_wrong_type_is_refused(model: Otter, prompt: Any) -> None:
    with pytest.raises(OtterError):
        model.generate(prompt)


def test_greedy_with_a_temperature_asked_for_sampling_is_refused(model: Otter) -> None:
    with pytest.raises(OtterError, match="temperature"):
        model.generate("hello", do_sample=True, temperature=0.0)


def test_a_lone_string_is_one_name_and_not_its_letters(model: Otter) -> None:
    alone = model.generate("hello", max_new_tokens=3, signals="reward", stop_strings=None)
    assert list(alone.signals) == ["reward"]
    assert list(model.score("hello", signals="toxicity").signals) == ["toxicity"]
    guide = {"reward": 1.0}
    gated = model.generate("hello", max_new_tokens=3, guide=guide, gate="toxicity>0.5")
    listed = model.generate("hello", max_new_tokens=3, guide=guide, gate=["toxicity>0.5"])
    assert gated.token_ids == listed.token_ids


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_sequence_is_refused_by_that_name(model: Otter, count: int) -> None:
    with pytest.raises(OtterError, match="num_return_sequences"):
        model.generate("hello", num_return_sequences=count)


@pytest.mark.parametrize("prompts", [[["a", "b"], ["c"]], [torch.tensor([[3], [4]]), [5]]])
def test_a_batch_within_a_batch_loses_no_prompt_silently(model: Otter, prompts: Any) -> None:
    with pytest.raises(OtterError, match="within a batch"):
        model.generate(prompts, max_new_tokens=2)


def test_arrays_of_numpy_take_a_mask_too(model: Otter) -> None:
    ids, mask = np.array([[0, 5, 9]]), np.array([[0, 1, 1]])
    masked = model.generate(ids, attention_mask=mask, max_new_tokens=4)
    assert masked[0].token_ids == model.generate([5, 9], max_new_tokens=4).token_ids


def test_a_text_beyond_the_bases_window_is_not_scored(model: Otter) -> None:
    window = model.model.shape.max_positions
    assert len(model.score([5] * window)) == window
    with pytest.raises(OtterError, match=f"window of {window}"):
        model.score([5] * (window + 1))


def test_a_stream_ends_when_generation_fails(model: Otter) -> None:
    """A thread that reads it would wait for ever."""

    class Kept:
        ended = False

        def put(self, value: torch.Tensor) -> None:
            if value.ndim == 1:
                raise KeyboardInterrupt

        def end(self) -> None:
            self.ended = True

    for prompts, weight, error in (
        ([5, 9], float("nan"), OtterError),
        (["a", "b"], 0.0, OtterError),
        ([5, 9], 0.0, KeyboardInterrupt),
    ):
        streamer = Kept()
        with pytest.raises(error):
            model.generate(prompts, guide={"reward": weight}, max_new_tokens=4, streamer=streamer)
        assert streamer.ended


def test_a_notebook_says_which_tokens_have_no_value() -> None:
    def shown(*values: float) -> str:
        return ScoredText("ab", ["a", "b"], [5, 6], {"reward": np.array(values)})._repr_html_()

    assert "reward has no value" in shown(np.nan, 1.0) and "nan" not in shown(np.nan, 1.0)
    assert "no token has a value" in shown(np.nan, np.nan)
    assert "+1.00 at every token" in shown(1.0, 1.0)
    assert "+0.00 (red) to +1.00 (green)" in shown(0.0, 1.0)

"""Generation across windows and lengths at which rotary angles change, against `model.generate`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PreTrainedModel,
)

from otter_cli.core.errors import OtterError
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import ArgsGuide, DExpertsGuide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession, ExpertSession, RewardSession
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.families.registry import FAMILIES
from otter_cli.families.rope import length_rule
from otter_cli.families.shape import base_shape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.checkpoints import SHAPE
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

SHORT, LONG = list(range(5, 15)), list(range(30, 50))
AT = 24  # tokens that the original window of a rotary setting holds
NEW = Sampling(18, ignore_eos=True)
BY_FAMILY = {case.family: case for case in CASES}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": AT},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": AT},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": AT,
    },
}
# Phi-3 takes no other settings: "yarn" is its old name of longrope.
PHI3 = ("longrope",)


def _with_rope(case: Case, kind: str) -> Case:
    """The case with a rotary setting, for all of its layer types."""
    if case.family in ("gpt_neox", "qwen3_next"):  # as released, a quarter: one angle of a toy's
        half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        case = replace(case, config={**case.config, "rope_parameters": half})
    config = AutoConfig.for_model(case.family, **{**SHAPE, **case.config})
    model = AutoModelForCausalLM.from_config(config)
    (count, *_) = [len(b) for name, b in model.named_buffers() if name.endswith("inv_freq")]
    factors = {"short_factor": [1.1] * count, "long_factor": [2.5] * count}
    setting = {"rope_type": kind, **ROPES[kind], **(factors if kind == "longrope" else {})}
    old = config.rope_parameters
    nested = isinstance(next(iter(old.values())), dict)
    new = {k: {**v, **setting} for k, v in old.items()} if nested else {**old, **setting}
    more = {"original_max_position_embeddings": AT} if case.family == "phi3" else {}
    return replace(case, config={**case.config, "rope_parameters": new, **more})


def _load(case: Case, tiny_checkpoint: Any, folder: Path) -> OtterForCausalLM:
    heads = 2 if case.full else 0
    graft = random_graft(case.write(tiny_checkpoint), folder / "g", hidden=8, heads=heads, ffn=16)
    attention = "eager" if case.eager_only else "sdpa"
    return OtterForCausalLM.from_pretrained(graft, attn_implementation=attention)


def _theirs(model: OtterForCausalLM, prompt: list[int], count: int) -> list[int]:
    tokens = torch.tensor([prompt])
    out = model.base.generate(tokens, max_new_tokens=count, do_sample=False, eos_token_id=[])
    return out[0, len(prompt) :].tolist()


def _signals(model: OtterForCausalLM, prompt: list[int], row: Generation) -> torch.Tensor:
    """The reward at every new token, by forwards without a cache: over the text as far as the
    angles of short texts reach, and over all of it."""
    text = prompt + row.tokens
    with torch.no_grad():
        early, whole = (
            model(torch.tensor([part]), signals=("reward",)).signals["reward"][0]
            for part in (text[:AT], text)
        )
    return torch.cat([early, whole[len(early) :]])[len(prompt) :].float()


def _check(
    model: OtterForCausalLM, prompts: Sequence[list[int]], rows: Sequence[Generation]
) -> None:
    """Text as transformers writes it for each prompt alone, and the signals of its prefixes."""
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.tokens == _theirs(model, prompt, len(row.tokens))
        if row.signals:
            got = torch.tensor(row.signals["reward"])
            torch.testing.assert_close(got, _signals(model, prompt, row), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_text_across_windows_is_transformers_own(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    model = _load(case, tiny_checkpoint, tmp_path)
    prompts = [SHORT, LONG]
    _check(model, prompts, generate(model, prompts, NEW, signals=("reward",)))
    if case.family == "qwen3_next":
        for option in ({"drafter": PromptLookup(2, 3)}, {"guide": SignalGuide("reward", 1.0, 4)}):
            with pytest.raises(OtterError, match="qwen3_next has layers of linear attention"):
                generate(model, prompts, NEW, **option)  # type: ignore[arg-type]
        with pytest.raises(OtterError, match="linear attention"):
            best_of(model, prompts, Sampling(4, temperature=1.0), BestOf(2, signal="reward"))
        return
    _check(model, prompts, generate(model, prompts, NEW, drafter=PromptLookup(2, 3)))
    # Too weak to change a choice: the test is about the step of many tokens.
    guide = SignalGuide("reward", 1e-9, 4)
    _check(model, prompts, generate(model, prompts, NEW, signals=("reward",), guide=guide))


def test_chunks_beside_full_attention_take_a_mask_each(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    case = BY_FAMILY["llama4_text"]
    case = replace(case, config={**case.config, "no_rope_layers": [1, 0, 1]})
    model = _load(case, tiny_checkpoint, tmp_path)
    for options in ({"drafter": PromptLookup(2, 3)}, {"guide": SignalGuide("reward", 1e-9, 4)}):
        rows = generate(model, [SHORT, LONG], NEW, signals=("reward",), **options)  # type: ignore[arg-type]
        _check(model, [SHORT, LONG], rows)


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("case", [case for case in CASES if case.rotary], ids=str)
def test_text_by_every_rotation_is_transformers_own(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, kind: str
) -> None:
    if case.family == "phi3" and kind not in PHI3:
        pytest.skip("Phi-3 has longrope alone")
    model = _load(_with_rope(case, kind), tiny_checkpoint, tmp_path)
    rule = model.shape.length_rule
    if rule is not None and rule.rope == "longrope" and not rule.restarts:
        with pytest.raises(OtterError, match=f"{case.family} change after {AT}"):
            generate(model, [SHORT], NEW)
        for prompts, count in (([SHORT], AT - len(SHORT)), ([LONG + SHORT], 8)):
            sampling = Sampling(count, ignore_eos=True)
            _check(model, prompts, generate(model, prompts, sampling, signals=("reward",)))
    else:
        _check(model, [SHORT, LONG], generate(model, [SHORT, LONG], NEW, signals=("reward",)))


@pytest.fixture(scope="module", params=[None, 8], ids=["all", "window"])
def phi3(request: Any, tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    case = _with_rope(Case("phi3", {"sliding_window": request.param}), "longrope")
    return _load(case, tiny_checkpoint, tmp_path_factory.mktemp("phi3"))


GUIDE = SignalGuide("reward", 1e-9, 4)
TREE = FutureDrafter(tree=TreeShape.of_widths([3, 2]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"read_every": 1},
        {"guide": GUIDE},
        {"drafter": PromptLookup(2, 3)},
        {"drafter": TREE},
        {"drafter": TREE, "guide": GUIDE},
        {"drafter": PromptLookup(2, 3), "exact": True},
    ],
    ids=["plain", "read at once", "guided", "looked up", "tree", "guided tree", "exact"],
)
def test_longrope_is_transformers_own_past_its_boundary(phi3: Any, options: Any) -> None:
    prompts = [SHORT, LONG, LONG + SHORT]
    if "exact" in options:
        (row,) = generate(phi3, [LONG], NEW, signals=("reward",), **options)
        _check(phi3, [LONG], [row])
        return
    _check(phi3, prompts, generate(phi3, prompts, NEW, signals=("reward",), **options))
    # The future heads guess at random; where the draft is right, it is taken across the boundary.
    if options.get("drafter") == PromptLookup(2, 3):
        own = {**options, "drafter": DraftModel(phi3.base, 3)}
        rows = generate(phi3, prompts, NEW, signals=("reward",), **own)
        _check(phi3, prompts, rows)
        assert sum(rows[0].counters.accepted) > 0


def test_rows_of_one_length_cross_together(phi3: Any) -> None:
    prompts = [LONG, [*LONG[1:], 3]]
    rows = generate(phi3, prompts, NEW, signals=("reward",))
    _check(phi3, prompts, rows)
    # The text is fed again once, for both rows.
    assert rows[0].counters.base_passes == 19
    assert rows[0].counters.tokens_fed == 2 * (len(LONG) + 18 + AT)


def test_a_row_draws_the_same_alone_and_beside_others(phi3: Any) -> None:
    drawn = Sampling(18, temperature=0.9, seed=3, ignore_eos=True)
    prompts, seen = [SHORT, LONG, LONG], list[tuple[int, int]]()
    guide = SignalGuide("reward", (0.5, 1.0, 0.0), 4)
    rows = generate(phi3, prompts, drawn, guide=guide, on_token=lambda r, t: seen.append((r, t)))
    assert rows[1].tokens != rows[2].tokens  # equal prompts, other strengths and draws
    for number, strength in ((0, 0.5), (1, 1.0)):
        alone = SignalGuide("reward", strength, 4)
        assert (
            rows[number].tokens == generate(phi3, [prompts[number]], drawn, guide=alone)[0].tokens
        )
    assert [[t for r, t in seen if r == row] for row in range(3)] == [r.tokens for r in rows]
    best = best_of(phi3, [SHORT, LONG], drawn, BestOf(3, signal="reward", block=5))
    for number, prompt in enumerate((SHORT, LONG)):
        (alone_best,) = best_of(phi3, [prompt], drawn, BestOf(3, signal="reward", block=5))
        assert best[number].tokens == alone_best.tokens
        got = torch.tensor(best[number].signals["reward"])
        expected = _signals(phi3, prompt, best[number])
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_candidates_drafts_and_what_is_taken_back_cross_the_boundary(phi3: Any) -> None:
    """Every operation of a session, just before the boundary and after it."""
    session = DecodingSession(phi3)
    text = [*LONG, 3, 4]
    session.prefill([text])
    assert session.depth == 2

    def close(state: Any, after: list[int]) -> None:
        with torch.no_grad():
            out = phi3(torch.tensor([after]), signals=("reward",))
        torch.testing.assert_close(
            session.read("reward", state)[0, 0], out.signals["reward"][0, -1], rtol=1e-3, atol=1e-3
        )

    session.extend(torch.tensor([[50, 51, 52]]))  # past the boundary, and none is kept
    session.keep(torch.tensor([0]))
    state = session.extend_candidates(torch.tensor([[60, 61]]))  # within it again
    close(state.select(torch.tensor([1])), [*text, 61])
    session.keep_candidate(torch.tensor([1]))
    text = [*text, 61]
    grown = session.extend_tree(torch.tensor([[70, 71]]), [-1, -1])
    close(grown.select(torch.tensor([1])), [*text, 71])
    deeper = session.extend_tree(torch.tensor([[72, 73]]), [1, 1])  # the first token past it
    close(deeper.select(torch.tensor([0])), [*text, 71, 72])
    session.keep_path(torch.tensor([[1, 2]]), torch.tensor([2]))
    close(session.step(torch.tensor([80])), [*text, 71, 72, 80])
    session.crop(torch.tensor([3]))
    close(session.step(torch.tensor([81])), [*text, 81])
    with pytest.raises(OtterError, match="texts have 10 and 30 tokens"):
        DecodingSession(phi3).prefill([SHORT, LONG + SHORT])


def test_models_beside_the_base_cross_their_own_boundary(
    phi3: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = deepcopy(phi3.config)
    config.num_labels = 1
    reward = AutoModelForSequenceClassification.from_config(config).eval()
    session, text = RewardSession(reward), list(LONG)
    session.prefill([text])
    expert, logits = ExpertSession(phi3.base), []
    expert.prefill([text])
    for token in range(60, 70):
        fed = session.extend_candidates(torch.tensor([[token, token + 1]]))
        with torch.no_grad():
            expected = [
                float(reward(torch.tensor([[*text, t]])).logits) for t in (token, token + 1)
            ]
        assert session.rewards(fed)[0].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)
        session.keep_candidate(torch.tensor([1]))
        text.append(token + 1)
        logits.append(expert.step(torch.tensor([token + 1])).base[0, 0])
        with torch.no_grad():
            whole = phi3.base(torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(logits[-1], whole, rtol=1e-3, atol=1e-3)
    # Rows of several lengths go apart for the sake of a model beside a base of no such rule.
    plain = _load(Case("llama"), tiny_checkpoint, tmp_path)
    for guide in (ArgsGuide(reward, 1.0, 3), DExpertsGuide(phi3.base, None, 0.3)):
        both = generate(plain, [SHORT, LONG], NEW, guide=guide)
        alone = [generate(plain, [prompt], NEW, guide=guide)[0] for prompt in (SHORT, LONG)]
        assert [row.tokens for row in both] == [row.tokens for row in alone]
    judged = BestOf(2, reward_model=reward)
    drawn = Sampling(10, temperature=1.0)
    both = best_of(plain, [SHORT, LONG], drawn, judged)
    alone = [best_of(plain, [prompt], drawn, judged)[0] for prompt in (SHORT, LONG)]
    assert [row.tokens for row in both] == [row.tokens for row in alone]


def test_every_hook_of_generation_that_a_family_overrides_is_known() -> None:
    """A new override in transformers has to be looked at: sessions call the decoder directly."""
    known = {"phi3": {"prepare_inputs_for_generation"}}
    for name, family in FAMILIES.items():
        kind = getattr(transformers, family.architecture)
        hooks = {hook for hook in vars(GenerationMixin) if callable(getattr(GenerationMixin, hook))}
        stop = kind.__mro__.index(GenerationMixin)
        ours = {
            hook
            for parent in kind.__mro__[:stop]
            if parent is not PreTrainedModel
            for hook in vars(parent)
            if hook in hooks and not hook.startswith("__")
        }
        assert ours == known.get(name, set()), name
        # Masks by the length: an older interface, which a decoder could bring back.
        decoder = getattr(kind, "base_model_prefix", "model")
        assert decoder and not hasattr(kind, "_update_causal_mask"), name


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, (512, None)),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, (256, None)),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32}}, (128, None)),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, (128, ("dynamic", 128))),
        ("llama", {"original_max_position_embeddings": 24,
            "rope_scaling": {"type": "longrope"}}, (128, ("longrope", 24))),
        ("phi3", {"rope_scaling": {"type": "su"}}, (128, ("longrope", 4096))),
        ("phi3", {"rope_scaling": None}, (128, ("default", 4096))),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "linear",
            "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}}, (128, None)),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "dynamic",
            "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}},
            (128, ("dynamic", 128))),
    ],
)  # fmt: skip
def test_rotary_settings_as_config_json_has_them(family: str, config: Any, expected: Any) -> None:
    shape = base_shape({"model_type": family, **SHAPE, **config})
    rule = shape.length_rule
    assert (shape.max_positions, rule and (rule.rope, rule.threshold)) == expected


def test_a_dynamic_rotation_is_refused_past_its_window(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    case = _with_rope(Case("llama", {"max_position_embeddings": 32}), "dynamic")
    model = _load(case, tiny_checkpoint, tmp_path)
    assert length_rule(model.config.to_dict()) == model.shape.length_rule
    with pytest.raises(OtterError, match="window of 32"):
        generate(model, [LONG], NEW)
    with pytest.raises(OtterError, match="dynamic rotary embedding: beyond 32 tokens"):
        model(torch.tensor([LONG + LONG]))
    plain = _load(Case("llama"), tiny_checkpoint, tmp_path / "plain")
    with pytest.raises(OtterError, match="a model beside the base: .*dynamic"):
        generate(plain, [LONG], NEW, drafter=DraftModel(model.base, 2))

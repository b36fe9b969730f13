import subprocess
import sys
from typing import get_args

import pytest

from otter_cli.demo.world import Split, World, gold_score, split_exchange, split_of, toxicity_labels

SPLITS: tuple[Split, ...] = get_args(Split)


def test_the_same_seed_writes_the_same_text_in_every_process() -> None:
    code = "from otter_cli.demo.world import World; print(World(5, 'test').texts(3)[2])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == World(5, "test").texts(3)[2] + "\n"


def test_text_does_not_depend_on_the_order_of_calls() -> None:
    world = World(1)
    pairs_first, texts_second = world.pairs(5), world.texts(5)
    fresh = World(1)
    assert fresh.texts(5) == texts_second
    assert fresh.pairs(5) == pairs_first


def test_other_seeds_write_other_text() -> None:
    assert not set(World(1).texts(50)) & set(World(2).texts(50))


def test_more_rows_begin_with_the_fewer() -> None:
    assert World(3).texts(20)[:5] == World(3).texts(5)


def test_splits_share_no_prompt_whatever_their_seeds() -> None:
    prompts = {split: prompts_of(split) for split in SPLITS}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    assert all(split_of(prompt) == split for split in SPLITS for prompt in prompts[split])


def prompts_of(split: Split) -> set[str]:
    texts = [text for seed in range(5) for text in World(seed, split).texts(200)]
    texts += [pair["rejected"] for pair in World(9, split).pairs(200)]
    return {split_exchange(text)[0] for text in texts}


def test_prompts_are_different_and_wait_for_an_answer() -> None:
    prompts = World(4, "test").prompts(300)
    assert len(set(prompts)) == 300
    assert all(prompt.endswith(":") for prompt in prompts)


def test_about_half_of_all_answers_are_rude_and_no_prompt_is() -> None:
    exchanges = [split_exchange(text) for text in World(6).texts(2_000)]
    rude = sum(toxicity_labels(answer)["toxicity"] for _, answer in exchanges) / len(exchanges)
    assert 0.45 < rude < 0.55
    assert not any(toxicity_labels(prompt)["toxicity"] for prompt, _ in exchanges)


@pytest.mark.parametrize("margin", [1.0, 2.0])
def test_gold_orders_every_pair_by_the_margin(margin: float) -> None:
    for pair in World(7, "test").pairs(300, margin=margin):
        (prompt, better), (same, worse) = map(split_exchange, (pair["chosen"], pair["rejected"]))
        assert prompt == same
        assert gold_score(prompt, better) - gold_score(prompt, worse) >= margin


def test_the_end_of_an_answer_tells_nothing_about_it() -> None:
    ends = {"chosen": 0, "rejected": 0}
    pairs = World(8).pairs(1_000)
    for key in ends:
        ends[key] = sum("by the clock on the wall" in pair[key] for pair in pairs)
    # A quarter each way; five standard deviations are 0.07.
    assert all(0.18 < count / len(pairs) < 0.32 for count in ends.values())
    assert not any(toxicity_labels(pair["rejected"][-60:])["toxicity"] for pair in pairs)


def test_labels_are_those_of_the_text() -> None:
    rows = World(2, "validation").labelled(100)
    assert {row["toxicity"] for row in rows} == {0, 1}
    for row in rows:
        assert row == {"text": row["text"], **toxicity_labels(str(row["text"]))}

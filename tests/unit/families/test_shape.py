"""Shapes read from config.json are those that transformers builds, even without some keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.registry import FAMILIES
from otter_cli.families.shape import base_parameters, base_shape, expected_tensors
from tests.support.checkpoints import SHAPE
from tests.support.families import CASES, FULL, Case


def _shape_of(model: Any) -> dict[str, Any]:
    """The shape of a loaded model, by transformers."""
    config = model.config
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocab": config.vocab_size,
        "max_positions": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
    }


def _modules(model: Any, part: str) -> list[Any]:
    return [m for name, m in model.named_modules() if name.endswith(part) and part]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_shape_is_the_model_s(tiny_checkpoint: Any, case: Case, tied: bool) -> None:
    folder: Path = case.write(tiny_checkpoint, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = base_shape(json.loads((folder / "config.json").read_text()))
    expected = _shape_of(model)
    assert {name: getattr(shape, name) for name in expected} == expected
    family = shape.family
    assert type(model).__name__ == family.architecture
    norm = model.get_submodule(family.final_norm)
    eps = next(getattr(norm, n) for n in ("eps", "variance_epsilon") if hasattr(norm, n))
    assert shape.norm_eps == eps
    assert family.norm_bias == (getattr(norm, "bias", None) is not None)
    for block, biased in ((family.attention, shape.out_bias), (family.ffn, shape.ffn_bias)):
        for module in _modules(model, f".{block.last_linear}") if block.read_at == "input" else []:
            assert biased == (module.bias is not None)
    for module in _modules(model, f".{family.attention.query}"):
        if not family.ffn_only:
            assert shape.attention_bias == (module.bias is not None)
    assert base_parameters(Checkpoint.open(folder), shape) == model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_config_json_leaves_out_means_what_it_means_to_transformers(family: str) -> None:
    configuration = AutoConfig.for_model(family)
    written = configuration.to_dict()
    keys = FAMILIES[family].keys
    left_out = set(FAMILIES[family].defaults) | {"tie_word_embeddings"}
    silent = {key: value for key, value in written.items() if key not in left_out}
    assert base_shape(silent) == base_shape(written)
    assert base_shape(silent).tied == configuration.tie_word_embeddings
    assert set(FAMILIES[family].defaults) <= {*written, *keys, "layer_norm_eps"}


def test_gpt2_s_ffn_is_four_times_as_wide_where_its_configuration_is_silent() -> None:
    config = {**AutoConfig.for_model("gpt2").to_dict(), "n_inner": None}
    assert base_shape(config).ffn == 4 * config["n_embd"]
    config["n_inner"] = 100
    assert base_shape(config).ffn == 100


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "opt-350m"),
        ("opt", {"_remove_final_layer_norm": True}, "no final norm"),
        ("phi", {"qk_layernorm": True}, "LayerNorm"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "looks ahead"),
        ("gpt2", {"add_cross_attention": True}, "encoder"),
    ],
)
def test_members_of_a_family_that_are_built_otherwise_are_refused(
    family: str, change: dict[str, Any], words: str
) -> None:
    config = {**AutoConfig.for_model(family).to_dict(), **change}
    with pytest.raises(OtterError, match=words) as caught:
        base_shape(config)
    assert next(iter(change)) in caught.value.what and "inspect --families" in caught.value.hint


def test_a_multiplier_that_is_no_number_is_refused() -> None:
    config = {**AutoConfig.for_model("granite").to_dict(), "residual_multiplier": "0.2"}
    with pytest.raises(OtterError, match="residual_multiplier is '0.2', not a number"):
        base_shape(config)


@pytest.mark.parametrize("sizes", [(1, 8), (2, 8), (4, 16)], ids=str)
@pytest.mark.parametrize("case", FULL, ids=str)
def test_sizes_of_heads_are_read_where_transformers_reads_them(
    case: Case, sizes: tuple[int, int]
) -> None:
    """GPT-2, OPT and GPT-NeoX have a key for every head and do not read num_key_value_heads."""
    given = {"num_key_value_heads": sizes[0], "head_dim": sizes[1]}
    config = AutoConfig.for_model(case.family, **{**SHAPE, **case.config, **given})
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config).state_dict()
    expected = dict(expected_tensors(base_shape(config.to_dict())))
    assert {name: tuple(built[name].shape) for name in expected} == expected

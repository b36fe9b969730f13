"""Whether a base can run: one check, which knows every tensor of every family as transformers does,
and which graft, its dry run, doctor and loading share."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.config_checks import QUANTISATION_PACKAGES
from otter_cli.families.registry import FAMILIES
from otter_cli.families.shape import base_shape, expected_tensors, has_complete_tensor_list
from otter_cli.graft import base_check
from otter_cli.graft.base_check import check_base, find_problems, needs_rehearsal, rehearse_load
from otter_cli.model.load import load_base
from tests.conftest import Otter
from tests.support.families import CASES, Case

BIASES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "qwen3": {"attention_bias": True},
    "gpt_neox": {"attention_bias": False},
    "gpt2": {"n_inner": 40},
    "opt": {"enable_bias": False},
}
LISTED = [
    *CASES,
    *(Case(name, {**case.config, **BIASES[name]}) for name in BIASES
      for case in CASES if case.family == name),
]  # fmt: skip


def _open(folder: Path) -> tuple[Checkpoint, Any]:
    base = Checkpoint.open(folder)
    return base, base_shape(base.config)


def _changed(base: Path, out: Path, tensors: Any = None, **config: Any) -> Path:
    shutil.copytree(base, out)
    if tensors is not None:
        held = load_file(out / "model.safetensors")
        tensors(held)
        (out / "model.safetensors").unlink()
        save_file(held, out / "model.safetensors", {"format": "pt"})
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return out


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", LISTED, ids=str)
def test_the_listed_tensors_are_those_that_transformers_writes(
    tiny_checkpoint: Any, case: Case, tied: bool
) -> None:
    base, shape = _open(case.write(tiny_checkpoint, tied=tied))
    listed = dict(expected_tensors(shape))
    written = {name: info.shape for name, info in base.tensors.items()}
    head = {} if tied else {shape.family.head_weight: (shape.vocab, shape.hidden)}
    if has_complete_tensor_list(shape.family):
        assert {**listed, **head} == written
    else:
        assert {**listed, **head}.items() <= written.items()
    assert not list(find_problems(base, shape)) and not list(rehearse_load(base))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_that_is_missing_or_strange_is_named_before_and_at_the_load(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    usual = case.write(tiny_checkpoint)
    names = sorted(Checkpoint.open(usual).tensors)
    # The last layer has one tensor of each module. Experts are left out, because there are many.
    wanted = [n for n in names if ".2." in n and ".experts." not in n] + names[-2:]
    strange = _changed(
        usual, tmp_path / "strange", lambda held: held.update({"score.weight": torch.ones(1, 32)})
    )
    for folder, name in [(strange, "score.weight")]:
        for verb in (lambda f: check_base(*_open(f)), load_base):
            with pytest.raises(OtterError, match=name) as caught:
                verb(folder)
            assert "leave it out" in caught.value.hint or "leave them out" in caught.value.hint
    for name in wanted:
        base, shape = _open(usual)
        info = base.tensors.pop(name)
        # transformers names a tensor by its module. The file may have other first parts.
        end = ".".join(name.split(".")[-2:])
        with pytest.raises(OtterError, match=rf"{end} is missing"):
            check_base(base, shape)
        base.tensors[name] = info


@pytest.mark.parametrize("case", [c for c in CASES if c.full], ids=str)
def test_buffers_of_older_files_are_left_out_by_transformers_too(
    tiny_checkpoint: Any, case: Case
) -> None:
    base, shape = _open(case.write(tiny_checkpoint))
    known = needs_rehearsal(base, shape)
    for buffer in shape.family.buffers:
        like = next(iter(base.tensors.values()))
        base.tensors[shape.family.module_name(1, buffer)] = like
    assert not list(rehearse_load(base)) and needs_rehearsal(base, shape) == known


def test_a_plain_base_needs_no_transformers(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    monkeypatch.setattr(base_check, "rehearse_load", lambda *_: pytest.fail("rehearsed"))
    check_base(*_open(tiny_llama))
    assert not needs_rehearsal(*_open(tiny_llama))
    assert needs_rehearsal(*_open_with(tiny_llama, unknown_key=1))


def _open_with(folder: Path, **config: Any) -> tuple[Checkpoint, Any]:
    base, shape = _open(folder)
    base.config.update(config)
    return base, shape


def test_the_packages_of_quantised_bases_are_all_that_transformers_knows() -> None:
    assert set(AUTO_QUANTIZER_MAPPING) - {"gguf"} <= set(QUANTISATION_PACKAGES)


SPOILT: dict[str, tuple[dict[str, Any], str, str]] = {
    "package": ({"quantization_config": {"quant_method": "gptq"}}, "gptqmodel are not", "pip"),
    "method": ({"quantization_config": {"quant_method": "x"}}, "cannot read", "unquantised"),
    "padding": ({"pad_token_id": 97}, "pad_token_id is 97", "null"),
    "activation": ({"hidden_act": "swish9"}, "swish9", "damaged"),
    "rope": ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral", "damaged"),
    "type": ({"attention_dropout": "much"}, "attention_dropout", "damaged"),
    "layers": ({"num_hidden_layers": 2}, "model.layers.2", "leave it out"),
    "many layers": ({"num_hidden_layers": 1 << 24}, "30 tensors", "another checkpoint"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_graft_dry_run_doctor_and_load_agree(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path, case: str
) -> None:
    changes, words, hint = SPOILT[case]
    base = _changed(tiny_llama, tmp_path / "base", **changes)
    for options in ([], ["--dry-run"]):
        refused = otter_here("graft", base, tmp_path / "out", *options)
        said = " ".join(refused.stderr.split())
        assert refused.returncode == 2 and words in said and hint in said, said
        assert not (tmp_path / "out").exists()
    sick = otter_here("doctor", base, "--json")
    assert sick.returncode == 1 and words in sick.stdout
    with pytest.raises(OtterError) as caught:
        load_base(base)
    assert words.split()[-1] in caught.value.what


def test_ids_without_a_row_are_warned_of(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    base = _changed(tiny_llama, tmp_path / "base", bos_token_id=400)
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][0], "id": 97, "content": "<|im_start|>"}
    tokenizer["added_tokens"].append(added)
    path.write_text(json.dumps(tokenizer))
    assert len(list(Checkpoint.open(base).files))
    grafted = otter_here("graft", base, tmp_path / "out")
    assert grafted.returncode == 0
    said = " ".join(grafted.stderr.split())
    assert "bos_token_id 400 is no token" in said and "beyond the embedding's 97 rows: 97;" in said
    notes = json.loads(otter_here("doctor", base, "--json").stdout)["notes"]
    assert len(notes) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_id_that_config_json_leaves_out_is_the_one_of_transformers(family: str) -> None:
    usual = CONFIG_MAPPING[family]().pad_token_id
    assert usual is None or usual < 2 or FAMILIES[family].defaults["pad_token_id"] == usual


ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": 7}, "config.json: rope_parameters is 7: transformers refuses it"),
    ({"rope_scaling": {"type": "yarn", "factor": [2]}}, "config.json: factor is [2]"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "config.json: transformers"),
    ({"rope_scaling": "x"}, 'config.json: rope_scaling is "x"'),
    ({"attention_dropout": "x"}, 'config.json: attention_dropout is "x"'),
]


@pytest.mark.parametrize(("change", "said"), ROPES, ids=lambda value: str(value)[:40])
def test_a_value_of_the_wrong_type_is_named_with_its_file(
    tiny_llama: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    base = Checkpoint.open(_changed(tiny_llama, tmp_path / "base", **change))
    with pytest.raises(OtterError) as caught:
        check_base(base, base_shape(base.config))
    assert said in caught.value.what and str(base.path) in caught.value.what

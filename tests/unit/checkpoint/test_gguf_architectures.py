"""Every architecture that transformers reads from GGUF is imported as its own loader reads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.gguf.convert import import_gguf
from otter_cli.checkpoint.gguf.model import supported_architectures
from otter_cli.core.errors import OtterError
from tests.support.gguf_files import ARCHITECTURES, VOCAB, write_gguf

# transformers lists these but cannot load them. The message of the import, by architecture.
NOT_BY_TRANSFORMERS = {
    "deci": ("it has no configuration class for deci", "no model of the type 'deci'"),
    "gpt-oss": (
        "it leaves the experts at random values",
        "'model.layers.0.mlp.experts.gate_up_proj' of the model is not in the file",
    ),
    "mistral": ("gguf has no names for it; such files say llama", "gguf model_type: mistral"),
}
WORK = [name for name in ARCHITECTURES if name not in NOT_BY_TRANSFORMERS]
# The file lacks the size of its per-layer embeddings, and transformers assumes 262,144 rows.
SLOW = {"gemma4"}
# transformers reads the vocabulary size from the tokens here.
WITH_TOKENIZER = {"gpt2", "starcoder2", "lfm2", "qwen35", "qwen35moe"}


def test_every_architecture_of_transformers_is_tried() -> None:
    assert set(supported_architectures()) == set(ARCHITECTURES)


def auto_class(name: str) -> Any:
    return AutoModelForSeq2SeqLM if "t5" in name else AutoModelForCausalLM


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in WORK]
)
def test_tensors_and_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", name, tokenizer=name in WITH_TOKENIZER)
    import_gguf(source, tmp_path / "out", dtype="float32")
    expected, report = auto_class(name).from_pretrained(
        str(tmp_path), gguf_file="m.gguf", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    imported, report = auto_class(name).from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report.values())
    ours, theirs = imported.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if "t5" in name else {})
    # Rounding may depend on the addresses of tensors, so all are copied to new ones.
    for parameter in (*expected.parameters(), *imported.parameters()):
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        expected_logits = expected.eval()(**inputs).logits
        assert expected_logits.isfinite().all()
        assert torch.equal(imported.eval()(**inputs).logits, expected_logits)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe", "lfm2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_equals_that_of_transformers(name: str, dtype: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", name, tokenizer=name in WITH_TOKENIZER)
    import_gguf(source, tmp_path / "out", dtype=dtype)
    expected = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="m.gguf", dtype=getattr(torch, dtype)
    ).state_dict()
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert {value.dtype for value in imported.values()} == {getattr(torch, dtype)}
    assert [key for key in expected if not torch.equal(imported[key], expected[key])] == []


@pytest.mark.parametrize("name", NOT_BY_TRANSFORMERS)
def test_what_transformers_does_not_load_is_refused_by_name(name: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", name)
    with pytest.raises(OtterError) as refused:
        import_gguf(source, tmp_path / "out")
    assert NOT_BY_TRANSFORMERS[name][1] in refused.value.what
    assert not (tmp_path / "out").exists()
    try:
        _, report = AutoModelForCausalLM.from_pretrained(
            str(tmp_path), gguf_file="m.gguf", output_loading_info=True
        )
    except (NotImplementedError, ValueError):
        return
    assert report["missing_keys"], "transformers loads it now: it belongs into the other test"


def test_every_type_that_gguf_quantises_is_read(tmp_path: Path) -> None:
    types = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32")
    source = write_gguf(tmp_path / "m.gguf", types=types)
    done = import_gguf(source, tmp_path / "out", dtype="float32")
    assert set(done.record["source"]["quantisation"]) == set(types)
    expected = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="m.gguf", dtype=torch.float32
    ).state_dict()
    checkpoint = Checkpoint.open(tmp_path / "out", allow_otter=False)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.from_numpy(checkpoint.read(name).copy()), value), name

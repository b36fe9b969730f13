"""Importing GGUF files: tokenizer, parts, record, and refusals before anything is written."""

import errno
import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.gguf import convert
from otter_cli.checkpoint.gguf.convert import import_gguf
from otter_cli.core.errors import OtterError
from tests.support.gguf_files import SIZES, SPECIAL, write_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tokenizer=True)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_tokenizer_is_that_of_transformers(source: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    import_gguf(source, tmp_path / "out")
    expected = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    imported = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["the hat is in", "  then\n\nother ones", "x<|user|>the</s>y", "<s>", "", *SPECIAL]
    for text in texts:
        assert imported(text).input_ids == expected(text).input_ids
        assert imported(text, add_special_tokens=False) == expected(text, add_special_tokens=False)
    assert imported("x<|user|>").input_ids[-1] == SPECIAL.index("<|user|>")
    chat = [{"role": "user", "content": "the hat"}]
    rendered = imported.apply_chat_template(chat, tokenize=False)
    assert rendered == expected.apply_chat_template(chat, tokenize=False) == "<|user|>the hat</s>"
    assert imported.all_special_tokens == expected.all_special_tokens


def test_a_chat_models_end_of_turn_ends_generation_too(source: Path, tmp_path: Path) -> None:
    file = with_entry(source, tmp_path, "tokenizer.ggml.eot_token_id", 5)
    import_gguf(file, tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 5] and generation["bos_token_id"] == 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"


def with_tensors(source: Path, folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The same model with more tensors."""
    return with_entry(source, folder, "general.description", "more", tensors, "more.gguf")


def with_entry(
    source: Path,
    folder: Path,
    key: str,
    value: Any,
    tensors: dict[str, np.ndarray] | None = None,
    name: str = "changed.gguf",
) -> Path:
    """The same model with one more metadata entry, or with another value of an entry, and with more
    tensors."""
    reader = gguf.GGUFReader(source)
    architecture = str(value) if key == "general.architecture" else "llama"
    writer = gguf.GGUFWriter(folder / name, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (key, "general.architecture"):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type)
    if key != "general.architecture":
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for extra, values in (tensors or {}).items():
        writer.add_tensor(extra, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / name


def test_the_record_says_what_the_base_is(source: Path, tmp_path: Path) -> None:
    done = import_gguf(source, tmp_path / "out", origin="a shelf")
    record = json.loads((tmp_path / "out" / "otter.import.json").read_text())
    assert record == done.record
    assert "dequantised model" in record["statement"] and record["dtype"] == "bfloat16"
    [file] = record["source"]["files"]
    assert file["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert file["bytes"] == source.stat().st_size and record["source"]["origin"] == "a shelf"
    kinds = record["source"]["quantisation"]
    assert set(kinds) == {"F16", "F32", "Q4_0", "Q4_1", "Q8_0"}
    assert sum(kind["parameters"] for kind in kinds.values()) == done.parameters
    assert record["versions"]["gguf"]


def test_an_import_can_be_repeated_bit_for_bit(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        import_gguf(source, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


# ---- parts ----


def split(tmp_path: Path) -> list[Path]:
    (tmp_path / "parts").mkdir()
    write_gguf(tmp_path / "parts" / "big.gguf", tokenizer=True, split=5)
    return sorted((tmp_path / "parts").iterdir())


def test_split_files_make_the_model_of_the_whole(source: Path, tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert len(parts) > 2 and parts[0].name.startswith("big-00001-of-0000")
    import_gguf(source, tmp_path / "whole")
    for given in (parts[0], parts[-1], tmp_path / "parts"):
        import_gguf(given, tmp_path / "out")
        assert weights(tmp_path / "out") == weights(tmp_path / "whole")
        for name in ("config.json", "tokenizer.json", "generation_config.json"):
            assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
        record = json.loads((tmp_path / "out" / "otter.import.json").read_text())
        assert [file["name"] for file in record["source"]["files"]] == [p.name for p in parts]
        assert not (tmp_path / "out" / "joined.gguf").exists()
        shutil.rmtree(tmp_path / "out")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(OtterError, match=f"{parts[1].name} is missing"):
        import_gguf(parts[0], tmp_path / "out")


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    alone = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(OtterError, match="is part 1 of"):
        import_gguf(alone, tmp_path / "out")


def pieces(source: Path, folder: Path) -> list[Path]:
    content = source.read_bytes()
    step = len(content) // 3 + 1
    files = [folder / f"tiny.gguf.part{number:02d}" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(content[number * step : (number + 1) * step])
    return files


def test_raw_pieces_are_joined_in_order(source: Path, tmp_path: Path) -> None:
    files = pieces(source, tmp_path)
    import_gguf(files[2], tmp_path / "out")
    import_gguf(source, tmp_path / "whole")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize(("missing", "says"), [(0, "part00 is missing"), (1, "part01 is missing"),
                                              (2, "truncated")])  # fmt: skip
def test_a_missing_piece_is_said(source: Path, tmp_path: Path, missing: int, says: str) -> None:
    files = pieces(source, tmp_path)
    files.pop(missing).unlink()
    with pytest.raises(OtterError, match=says) as refused:
        import_gguf(files[0], tmp_path / "out")
    assert refused.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name for file in files]


# ---- what is refused ----


def changed(key: str, value: Any) -> Callable[[Path, Path], Path]:
    return lambda source, folder: with_entry(source, folder, key, value)


def cut(source: Path, folder: Path, share: float = 0.6) -> Path:
    (folder / "cut.gguf").write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return folder / "cut.gguf"


def with_tensor(name: str, values: np.ndarray) -> Callable[[Path, Path], Path]:
    return lambda source, folder: write_gguf(
        folder / "more.gguf", tokenizer=True, extra={name: values}
    )


def text_file(source: Path, folder: Path) -> Path:
    (folder / "model.gguf").write_text("<html>404</html>")
    return folder / "model.gguf"


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "projector": (changed("general.type", "mmproj"), "a multimodal projector"),
    "clip": (changed("general.architecture", "clip"), "a multimodal projector"),
    "LoRA": (changed("general.type", "adapter"), "a LoRA adapter"),
    "architecture": (changed("general.architecture", "rwkv7"), "the architecture 'rwkv7'"),
    "scaled positions": (
        changed("llama.rope.scaling.type", "yarn"),
        "rotary positions are scaled ('yarn')",
    ),
    "too many layers": (changed("llama.block_count", 10**6), "speaks of 1000000 layers"),
    "wrong width": (changed("llama.embedding_length", 128), "describes a model in which it is"),
    "type": (with_tensor("blk.0.mask", np.ones((4, 4), np.int32)), "'blk.0.mask' is of type I32"),
    "extra tensor": (
        with_tensor("blk.0.router", np.ones((4, 4), np.float32)),
        "'blk.0.router' has no place in the model",
    ),
    "rotary factors": (
        with_tensor("rope_freqs.weight", np.full(8, 2, np.float32)),
        "'rope_freqs.weight' are not those of `rope_type: llama3`",
    ),
    "missing tensor": (
        lambda source, folder: write_gguf(folder / "m.gguf", without="blk.1.ffn_up.weight"),
        "'model.layers.1.mlp.up_proj.weight' of the model is not in the file",
    ),
    "not finite": (
        lambda source, folder: write_gguf(
            folder / "m.gguf", without="output_norm.weight",
            extra={"output_norm.weight": np.full(64, np.nan, np.float32)}),
        "model.norm.weight has values that are infinite",
    ),
    "truncated": (cut, "truncated: tensor"),
    "truncated in the header": (lambda s, f: cut(s, f, 0.01), "truncated: the header goes on"),
    "no GGUF": (text_file, "is not a GGUF file"),
    "absent": (lambda source, folder: folder / "none.gguf", "does not exist"),
    "tokenizer": (changed("tokenizer.ggml.model", "plamo9"), "cannot load its tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_is_left(case: str, source: Path, tmp_path: Path) -> None:
    make, says = REFUSED[case]
    (tmp_path / "in").mkdir()
    file = make(source, tmp_path / "in")
    with pytest.raises(OtterError) as refused:
        import_gguf(file, tmp_path / "out")
    assert says in refused.value.what and refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_rotary_factors_that_change_nothing_are_read(source: Path, tmp_path: Path) -> None:
    file = with_tensor("rope_freqs.weight", np.ones(8, np.float32))(source, tmp_path)
    import_gguf(file, tmp_path / "out")
    import_gguf(source, tmp_path / "plain")
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_frequencies(factor: float, rope_type: str = "llama3") -> torch.Tensor:
    """transformers' own rotary frequencies of the file's model, with such scaling."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {**LLAMA3, "factor": factor} if rope_type == "llama3" else {"rope_theta": 500_000.0}
    config = LlamaConfig(**SIZES, rope_parameters={**rope, "rope_type": rope_type})
    return LlamaRotaryEmbedding(config).inv_freq


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotary_factors_of_llama3_become_its_configuration(
    source: Path, tmp_path: Path, factor: float
) -> None:
    """llama.cpp divides the frequencies by the factors: those of the imported model must be the
    quotients, which transformers' own loader ignores."""
    from transformers import AutoModelForCausalLM

    frequencies, plain = llama3_frequencies(factor), llama3_frequencies(factor, "default")
    factors = (plain / frequencies).numpy().astype(np.float32)
    assert factors.max() == pytest.approx(factor) and factors.min() == 1
    scaled = with_entry(source, tmp_path, "llama.rope.freq_base", 500_000.0)
    file = with_tensors(scaled, tmp_path, {"rope_freqs.weight": factors})
    import_gguf(file, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    rope = model.config.rope_parameters
    assert {key: rope[key] for key in LLAMA3} == LLAMA3 and rope["factor"] == pytest.approx(factor)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies)
    import_gguf(scaled, tmp_path / "plain")
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        logits = model(ids).logits
        other = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(ids).logits
    assert not torch.equal(logits, other)


def test_other_rotary_factors_are_refused(source: Path, tmp_path: Path) -> None:
    factors = (llama3_frequencies(8.0, "default") / llama3_frequencies(8.0)).numpy()
    scaled = with_entry(source, tmp_path, "llama.rope.freq_base", 500_000.0)
    for change in (1.01 * factors, factors[::-1], np.full(8, np.nan)):
        file = with_tensors(scaled, tmp_path, {"rope_freqs.weight": change.astype(np.float32)})
        with pytest.raises(OtterError, match="rope_type: llama3"):
            import_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OtterError, match="exists already"):
        import_gguf(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   KeyboardInterrupt()])  # fmt: skip
@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_or_ctrl_c_leaves_nothing(
    error: BaseException, after: int, source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    made = []

    def finite(values: Any, name: str, header: Any) -> Any:
        made.append(name)
        if len(made) > after:
            raise error
        return values

    monkeypatch.setattr(convert, "_require_finite_values", finite)
    with pytest.raises((OtterError, KeyboardInterrupt)) as raised:
        import_gguf(source, tmp_path / "out")
    if isinstance(error, OSError):
        assert "No space left" in str(raised.value) and "free some space" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_the_tensors(
    source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OtterError, match=r"are needed and 1\.00 kB are free"):
        import_gguf(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_peak_is_less_than_twice_the_result(tmp_path: Path, monkeypatch: Any) -> None:
    """The vocabulary table is nearly all of this model, as in small models of many words."""
    monkeypatch.setattr("tests.support.gguf_files.SIZES", {**SIZES, "vocab_size": 200_000})
    source = write_gguf(tmp_path / "wide.gguf", types=("Q8_0",))
    import_gguf(source, tmp_path / "first")  # the first import loads libraries
    tracemalloc.start()
    done = import_gguf(source, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.stored_bytes > 50e6
    assert peak < 1.5 * done.stored_bytes


# ---- as a base ----


def test_the_record_belongs_to_the_base(source: Path, tmp_path: Path) -> None:
    import_gguf(source, tmp_path / "out")
    assert "otter.import.json" in Checkpoint.open(tmp_path / "out", allow_otter=False).files


def test_a_panic_of_the_library_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    from otter_cli.checkpoint.gguf.model import read_by_transformers

    class PanicException(BaseException):
        """The error of Rust code through pyo3, which is no Exception."""

    path = tmp_path / "model.gguf"
    with (
        pytest.raises(OtterError, match=r"model\.gguf: transformers cannot load its tokenizer"),
        read_by_transformers("tokenizer", path),
    ):
        raise PanicException("index out of bounds")

"""Every --dtype takes the same names, by one parser."""

from typing import Any

import pytest

from otter_cli.cli.graft import InsertionOptions
from otter_cli.core.dtype_names import DTYPE_HELP, parse_dtype, stored_dtype_name
from otter_cli.core.errors import OtterError
from otter_cli.graft.config import InsertionConfig
from tests.cli.test_help import LEAVES

NAMES = {
    "float32": ["float32", "F32", "f32", "fp32", "FP32", "float", "torch.float32"],
    "bfloat16": ["bfloat16", "BF16", "bf16", "torch.bfloat16"],
    "float16": ["float16", "F16", "fp16", "half"],
}
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@pytest.mark.parametrize(
    ("name", "alias"), [(n, a) for n, aliases in NAMES.items() for a in aliases]
)
def test_every_spelling_is_read(name: str, alias: str) -> None:
    assert parse_dtype(alias) == name
    assert stored_dtype_name(alias) == STORED[name]
    assert InsertionOptions(dtype=alias).dtype == name
    config = InsertionConfig(hidden=1, heads=0, ffn=0, layers=(0,), dtype=alias)
    assert config.dtype == STORED[name]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(OtterError, match="--dtype 'bfloat61' is no dtype") as caught:
        parse_dtype("bfloat61")
    assert caught.value.hint == f"did you mean 'bfloat16'? {DTYPE_HELP}"


WITH_DTYPE = [
    (path, param) for path, command in LEAVES for param in command.params if param.name == "dtype"
]


@pytest.mark.parametrize(("path", "param"), WITH_DTYPE, ids=[" ".join(p) for p, _ in WITH_DTYPE])
def test_every_dtype_option_lists_the_same_names(path: tuple[str, ...], param: Any) -> None:
    assert DTYPE_HELP in param.help


@pytest.mark.parametrize("path", [path for path, _ in WITH_DTYPE], ids=" ".join)
def test_every_dtype_option_uses_the_parser(path: tuple[str, ...], capsys: Any) -> None:
    from otter_cli.cli.main import main

    positional = {"import": ["a.gguf", "out"], "graft": ["base", "out"], "verify": ["folder"]}
    needs = {"lm-eval": ["folder", "--tasks", "x"], "overhead": ["--shape", "tiny"]}
    arguments = positional.get(path[0]) or needs[path[-1]]
    assert main([*path, *arguments, "--dtype", "bfloat61"]) == 2
    assert "--dtype 'bfloat61' is no dtype" in capsys.readouterr().err

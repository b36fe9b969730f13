"""Every JSON reader refuses numbers of hundreds of digits."""

import json
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object, read_own_json_object


@pytest.mark.parametrize("read", [read_json_object, read_own_json_object])
def test_a_number_of_hundreds_of_digits_is_refused_in_few_words(
    read: object, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 1' + "0" * 400 + "}")
    with pytest.raises(OtterError, match=r"config.json: a number of 401 digits") as refused:
        read(path)  # type: ignore[operator]
    assert len(str(refused.value)) < len(str(path)) + 40


def test_the_longest_number_that_tokenizers_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    no_limit = int(1e30)
    path.write_text(json.dumps({"model_max_length": no_limit, "low": -(2**63)}))
    assert read_json_object(path)["model_max_length"] == no_limit

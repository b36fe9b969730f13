import pytest

from otter_cli.core.suggest import closest

OPTIONS = ["learning_rate", "batch_size", "steps"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learning_rat", "learning_rate"),
        ("Batch-Size", "batch_size"),
        ("STEPS", "steps"),
        ("temperature", None),
        ("", None),
    ],
)
def test_closest(name: str, expected: str | None) -> None:
    assert closest(name, OPTIONS) == expected


def test_the_option_keeps_its_own_spelling() -> None:
    assert closest("bf17", ["F32", "BF16"]) == "BF16"
    assert closest("anything", []) is None

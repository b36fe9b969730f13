import pytest

from otter_cli.core.formatting import bytes_text, count_text, percent_text, seconds_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (27_812_680, "27.8 MB"),
        (999_960, "1.00 MB"),
        (14_483_464_192, "14.5 GB"),
        (2**60, "1153 PB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (257, "257"), (1675, "1,675"), (260_032, "260 k"), (6_950_000, "6.95 M")],
)
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(("share", "text"), [(0.8649, "86.5 %"), (1, "100.0 %"), (0, "0.0 %")])
def test_percent(share: float, text: str) -> None:
    assert percent_text(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0031, "3.1 ms"),
        (0.25, "250 ms"),
        (0.99999, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.9, "1 h 00 min"),
        (3720, "1 h 02 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text

"""Names that methods have in every run."""

PLAIN = "plain"
# `insertion@0.5` is the method `insertion` at that strength.
SWEPT = "@"


def family(method: str) -> str:
    """The method's name without its strength."""
    return method.partition(SWEPT)[0]

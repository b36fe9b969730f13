"""Reward against KL over a method's strengths, in one number."""

from pydantic import BaseModel, ConfigDict

from otter_cli.benchmarks.estimates import Estimate


class Front(BaseModel):
    """`area`: the mean gain in gold reward over plain's, over KL from plain's up to `up_to`, which
    all fronts of a run reach; of points, the best that costs no more."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    methods: list[str]
    up_to: float
    area: Estimate

"""Scores of texts, for a graft served as a reward model: `vllm serve DIR --runner pooling`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.seqwise.heads import ClassifierPoolerHead
from vllm.model_executor.layers.pooler.seqwise.methods import get_seq_pooling_method
from vllm.model_executor.layers.pooler.seqwise.poolers import SequencePooler
from vllm.model_executor.layers.pooler.special import DispatchPooler
from vllm.model_executor.layers.pooler.tokwise.heads import TokenClassifierPoolerHead
from vllm.model_executor.layers.pooler.tokwise.methods import get_tok_pooling_method
from vllm.model_executor.layers.pooler.tokwise.poolers import TokenPooler

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.numbers import Numbers


def make_pooler(
    vllm_config: VllmConfig, numbers: Numbers, scores: Callable[[Tensor], Tensor]
) -> DispatchPooler | None:
    """None for an engine that generates. `scores`: [rows, y and v] to [rows, numbers].

    `/classify` reads the last token, `/pooling` every one. Raises OtterError where no signal scores
    a text.
    """
    if vllm_config.model_config.runner_type != "pooling":
        return None
    if not numbers.of_texts:
        raise OtterError(
            "no signal of this graft scores a text",
            hint="value and classes do: otter graft --signal reward; vocabulary signals score "
            "next tokens, beside generated ones",
        )
    last, every = get_seq_pooling_method("LAST"), get_tok_pooling_method("ALL")
    return DispatchPooler(
        {
            "classify": SequencePooler(last, ClassifierPoolerHead(scores)),
            "token_classify": TokenPooler(every, TokenClassifierPoolerHead(scores)),
        }
    )

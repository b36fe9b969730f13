"""Text from OtterForCausalLM: the base's own `generate`, and guided decoding as a method.

`generate_guided` belongs to decoding/, and is imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


class GenerationMethods:
    """What `OtterForCausalLM` offers beside its forward."""

    base: PreTrainedModel

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """transformers' own, of the base as it is."""
        generator: Any = self.base
        return generator.generate(*arguments, **options)

    def generate_guided(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> list[Generation]:
        """`otter_cli.decoding.generate`, with its `guide`, `gate`, `drafter` and other options.

        Prompts [batch, n] lie where `attention_mask` is 1; raises OtterError as that does.
        """
        # The one import against the layers: the method belongs to the model, its code to decoding/.
        from otter_cli.decoding.generate import generate
        from otter_cli.decoding.sampling import Sampling

        mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        prompts = [ids[kept].tolist() for ids, kept in zip(input_ids, mask.bool(), strict=True)]
        model: Any = self
        return generate(model, prompts, sampling or Sampling(), **options)

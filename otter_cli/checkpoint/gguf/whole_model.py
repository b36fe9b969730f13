"""Tensors of the architectures that transformers loads by its newer code: read as a whole model.

That code converts all tensors of a model together, so the peak is the model and one tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.gguf.header import GgufHeader
from otter_cli.checkpoint.gguf.reading import read_by_transformers
from otter_cli.checkpoint.gguf.tensors import DiskLayout, as_array
from otter_cli.checkpoint.writer import TensorSpec
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.checkpoint.gguf.model import ModelDescription


class WholeModelTensors:
    """As `GgufTensors`, from a model that transformers has loaded."""

    def __init__(self, header: GgufHeader, description: ModelDescription, dtype: str) -> None:
        import torch
        from transformers import GgufConfig

        path = header.path
        with read_by_transformers("tensors", path):
            model, report = type(description.model).from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=getattr(torch, str(description.config.dtype).removeprefix("torch.")),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, report[kind])):
                raise OtterError(
                    f"{path}: {kind.replace('_keys', '')} tensors, by transformers' loader: "
                    f"{', '.join(names[:3])}",
                    hint="the file is damaged: fetch it again",
                )
        self.layout = DiskLayout.of(description.model)
        self.specs = {name: TensorSpec(dtype, shape) for name, shape in self.layout.shapes.items()}
        self._values = dict(model.state_dict())
        self._made: tuple[str, dict[str, Array]] = ("", {})

    def make(self, name: str) -> Array:
        """The values of the tensor that is called `name` on disk."""
        module_name = self.layout.origin[name]
        if self._made[0] != module_name:
            values = as_array(self._values[module_name])
            self._made = (module_name, self.layout.to_disk(module_name, values))
        return self._made[1].pop(name)

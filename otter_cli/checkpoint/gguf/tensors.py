"""The tensors of a GGUF file under transformers' names, converted while they are written.

`GgufTensors` converts one tensor at a time, so the peak memory is one tensor. `WholeModelTensors`
is for architectures that transformers converts together, so its peak is the whole model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.dtypes import NUMPY_DTYPES, Array, encode
from otter_cli.checkpoint.gguf.header import GgufHeader, GgufTensor, damaged_gguf
from otter_cli.checkpoint.gguf.model import read_by_transformers
from otter_cli.checkpoint.gguf.rotary import ROTARY_FACTORS
from otter_cli.checkpoint.safetensors_writer import TensorSpec
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import quoted

if TYPE_CHECKING:
    from otter_cli.checkpoint.gguf.model import ModelDescription


# The tables over the vocabulary are the largest tensors. transformers does not change them, so
# their rows can be converted a few at a time.
_VOCABULARY_TABLES = {"token_embd.weight", "output.weight"}
_ELEMENTS_AT_ONCE = 2**19

# Tensors in older files with positions that every reader computes itself.
_COMPUTED_POSITIONS = ("attn_rot_embd", "rope_freqs")


class StoredNames:
    """How transformers stores a model's tensors: under the module's names, unless it stores in
    parts what the module holds fused, such as a layer's experts.

    `origin` and `shapes` are by the names on disk, `module_shapes` by the names in the module.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model = model
        self.tied = frozenset(model.all_tied_weights_keys)
        self.identical = not get_model_conversion_mapping(model, add_legacy=False)
        self.module_shapes: dict[str, tuple[int, ...]] = {}
        self.origin: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, value in model.state_dict().items():
            if name not in self.tied:
                self.module_shapes[name] = tuple(value.shape)
                for stored_name, part in self._split(name, value).items():
                    self.origin[stored_name] = name
                    self.shapes[stored_name] = tuple(part.shape)

    def split(self, name: str, values: Array) -> dict[str, Array]:
        """The stored tensors of the module's tensor `name`."""
        if self.identical:
            return {name: values}
        import torch

        value = torch.from_numpy(values)
        if values.dtype.kind == "u":  # the bits of bfloat16, which numpy lacks
            value = value.view(torch.bfloat16)
        return {stored: as_array(part) for stored, part in self._split(name, value).items()}

    def _split(self, name: str, value: Any) -> dict[str, Any]:
        if self.identical:
            return {name: value}
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self.model, {name: value}))


def as_array(value: Any) -> Array:
    """A torch tensor as a numpy array. bfloat16, which numpy lacks, becomes its bits."""
    import torch

    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint16).numpy()
    return value.numpy()


class ModelTensors(ABC):
    """The tensors of the imported model. `specs` describes them by their names on disk."""

    def __init__(self, description: ModelDescription, dtype: str) -> None:
        self.names = StoredNames(description.model)
        self.specs = {name: TensorSpec(dtype, shape) for name, shape in self.names.shapes.items()}
        self._last: tuple[str, dict[str, Array]] = ("", {})

    def make(self, name: str) -> Array:
        """The values of the tensor with the name `name` on disk. Each is made once."""
        module_name = self.names.origin[name]
        if self._last[0] != module_name:
            self._last = (module_name, {})  # frees the previous tensor first
            values = self._values(module_name)
            self._last = (module_name, self.names.split(module_name, values))
        return self._last[1].pop(name)

    @abstractmethod
    def _values(self, name: str) -> Array:
        """The values of the tensor with the name `name` in the module."""


class GgufTensors(ModelTensors):
    """Tensors that are dequantised and converted one at a time."""

    def __init__(self, header: GgufHeader, description: ModelDescription, dtype: str) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self.header, self.dtype = header, dtype
        self.scaled = "rope_scaling" in description.raw
        processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        with read_by_transformers("tensor names", header.path):
            self.processor = processor(config=description.raw)
            shallow = _ShallowModel(description.model, description.config, depth=1)
            self.module_names: dict[str, str] = get_gguf_hf_weights_map(shallow, self.processor)
            super().__init__(description, dtype)
        self.sources = self._sources()

    def _sources(self) -> dict[str, list[GgufTensor]]:
        """The stored tensors that make up each tensor of the model. Raises OtterError unless every
        stored tensor is used and every tensor of the model is stored."""
        sources: dict[str, list[GgufTensor]] = {name: [] for name in self.names.module_shapes}
        for stored in self.header.tensors.values():
            # A layer's experts are one tensor in the module, without .weight in its name.
            short_name = stored.name.removesuffix(".weight")
            name = self.module_names.get(stored.name) or self.module_names.get(short_name)
            if name in sources:
                sources[name].append(stored)
            elif name not in self.names.tied and not self._is_unused(stored):
                raise OtterError(
                    f"{self.header.path}: tensor {quoted(stored.name)} has no place in the model "
                    "as transformers' GGUF loader reads it",
                    hint="use the model's safetensors checkpoint",
                )
        for name, parts in sources.items():
            if not parts:
                what = f"tensor {quoted(name)} of the model is not in the file"
                raise damaged_gguf(self.header.path, what)
        return sources

    def _is_unused(self, stored: GgufTensor) -> bool:
        """Whether a tensor holds factors of the rotary frequencies that change nothing, or that the
        configuration stands for."""
        if stored.name == ROTARY_FACTORS and self.scaled:
            return True
        if not any(name in stored.name for name in _COMPUTED_POSITIONS):
            return False
        return bool((self._read(stored, 0, 1 if len(stored.shape) > 1 else None) == 1).all())

    def _values(self, name: str) -> Array:
        """The values that transformers' loader would give the tensor."""
        parts = self.sources[name]
        shape = self.names.module_shapes[name]
        if len(parts) == 1 and self._is_unchanged_table(parts[0]):
            if parts[0].shape != shape:
                raise self._wrong_shape(name, parts[0].shape)
            return self._encoded_table(parts[0])
        import numpy as np

        collected: dict[str, Any] = {"tensors": {}}
        with read_by_transformers(f"tensor {quoted(name)}", self.header.path):
            for stored in parts:
                result = self.processor.process(
                    weights=self._read(stored),
                    name=stored.name,
                    tensor_key_mapping=self.module_names,
                    parsed_parameters=collected,
                )
                if result.name in self.module_names:
                    collected["tensors"][self.module_names[result.name]] = result.weights
            values = np.asarray(collected["tensors"][name])
        if values.shape != shape:
            raise self._wrong_shape(name, values.shape)
        return values

    def _is_unchanged_table(self, stored: GgufTensor) -> bool:
        if stored.name not in _VOCABULARY_TABLES or len(stored.shape) != 2:
            return False
        row = self._read(stored, 0, 1)
        result = self.processor.process(
            weights=row,
            name=stored.name,
            tensor_key_mapping=self.module_names,
            parsed_parameters={"tensors": {}},
        )
        return result.weights is row and result.name == stored.name

    def _encoded_table(self, stored: GgufTensor) -> Array:
        """A table's values in the stored dtype, converted some rows at a time."""
        import numpy as np

        rows, width = stored.shape
        out = np.empty(stored.shape, NUMPY_DTYPES[self.dtype])
        step = max(1, _ELEMENTS_AT_ONCE // width)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            out[start:end] = encode(self._read(stored, start, end), self.dtype)
        return out

    def _read(self, stored: GgufTensor, start: int = 0, end: int | None = None) -> Array:
        """Rows `start` to `end` of a stored tensor, dequantised. All rows by default."""
        import numpy as np
        from gguf import GGMLQuantizationType, dequantize

        row_bytes = stored.nbytes // stored.shape[0]
        if end is None:
            shape, offset, count = stored.shape, 0, stored.nbytes
        else:
            shape = (end - start, *stored.shape[1:])
            offset, count = start * row_bytes, (end - start) * row_bytes
        data = np.fromfile(self.header.path, np.uint8, count, offset=stored.start + offset)
        # gguf expects the stored bytes in rows, as its own reader returns them.
        last = stored.nbytes // prod(stored.shape[:-1])
        kind = GGMLQuantizationType(stored.type_id)
        with np.errstate(all="ignore"):  # values are checked where they are written
            return dequantize(data.reshape(*shape[:-1], last), kind).reshape(shape)

    def _wrong_shape(self, name: str, shape: tuple[int, ...]) -> OtterError:
        expected = list(self.names.module_shapes[name])
        return OtterError(
            f"{self.header.path}: tensor {quoted(name)} has shape {list(shape)}, and the file "
            f"describes a model in which it is {expected}",
            hint="the file is damaged, or of a model that transformers' GGUF loader reads wrongly",
        )


class _ShallowModel:
    """A model without the modules inside its parts, for transformers' search of names.

    The search builds gguf's table of all names for every module. Files use the names of the model
    or of one of its parts (Bloom's use those of its body), so deeper modules are not needed.
    """

    def __init__(self, model: Any, config: Any, depth: int) -> None:
        self.config = config
        self.state_dict = model.state_dict
        children = model.named_children() if depth else ()
        self._parts = [(name, _ShallowModel(part, config, depth - 1)) for name, part in children]

    def named_children(self) -> list[tuple[str, _ShallowModel]]:
        return self._parts


class WholeModelTensors(ModelTensors):
    """Tensors of a model that transformers loads as a whole."""

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
        super().__init__(description, dtype)
        self._state = dict(model.state_dict())

    def _values(self, name: str) -> Array:
        return as_array(self._state[name])

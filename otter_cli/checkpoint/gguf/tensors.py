"""The tensors of a GGUF file under transformers' names, converted while they are written.

`GgufTensors` converts one tensor at a time, so the peak memory is one tensor. `WholeModelTensors`
is for architectures that transformers converts together, so its peak is the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.dtypes import Array, encode
from otter_cli.checkpoint.gguf.header import DAMAGED_GGUF_HINT, GgufHeader, GgufTensor
from otter_cli.checkpoint.gguf.model import read_by_transformers
from otter_cli.checkpoint.safetensors_writer import TensorSpec
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import quoted

if TYPE_CHECKING:
    from otter_cli.checkpoint.gguf.model import ModelDescription


# The two tables over the vocabulary are the largest tensors: no change of transformers' touches
# them, so their rows can be converted a few at a time.
_VOCABULARY_TABLES = {"token_embd.weight", "output.weight"}
_ELEMENTS_AT_ONCE = 2**19

# Positions that older files store though every reader computes them.
_COMPUTED_POSITIONS = ("attn_rot_embd", "rope_freqs")


class GgufTensors:
    """`specs` says what every tensor will be, by the name that it has on disk; `make` makes it."""

    def __init__(self, header: GgufHeader, description: ModelDescription, dtype: str) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self.header, self.dtype = header, dtype
        processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        with read_by_transformers("tensor names", header.path):
            self.processor = processor(config=description.raw)
            outline = _ShallowModel(description.model, description.config, depth=1)
            self.names: dict[str, str] = get_gguf_hf_weights_map(outline, self.processor)
            self.layout = StoredNames.of(description.model)
        self.sources = self._sources()
        self.specs = {name: TensorSpec(dtype, shape) for name, shape in self.layout.shapes.items()}
        self._made: tuple[str, dict[str, Array]] = ("", {})

    def make(self, name: str) -> Array:
        """The values of the tensor that is called `name` on disk."""
        module_name = self.layout.origin[name]
        if self._made[0] != module_name:
            self._made = (module_name, {})  # what was left of the one before goes first
            values = self._values(module_name)
            self._made = (module_name, self.layout.to_disk(module_name, values))
        return self._made[1].pop(name)

    def _sources(self) -> dict[str, list[GgufTensor]]:
        """Which stored tensors make up each of the model's; OtterError unless all are used."""
        sources: dict[str, list[GgufTensor]] = {name: [] for name in self.layout.module_shapes}
        for stored in self.header.tensors.values():
            # Experts of a layer are one tensor in the module, without .weight in its name.
            name = self.names.get(stored.name) or self.names.get(
                stored.name.removesuffix(".weight")
            )
            if name in sources:
                sources[name].append(stored)
            elif name not in self.layout.tied:
                self._refuse_unused(stored)
        for name, parts in sources.items():
            if not parts:
                raise OtterError(
                    f"{self.header.path}: tensor {quoted(name)} of the model is not in the file",
                    hint=DAMAGED_GGUF_HINT,
                )
        return sources

    def _refuse_unused(self, stored: GgufTensor) -> None:
        if any(name in stored.name for name in _COMPUTED_POSITIONS) and self._is_plain(stored):
            return
        raise OtterError(
            f"{self.header.path}: tensor {quoted(stored.name)} has no place in the model as "
            "transformers' GGUF loader reads it",
            hint="use the model's safetensors checkpoint",
        )

    def _is_plain(self, stored: GgufTensor) -> bool:
        """Whether factors of the rotary frequencies change nothing."""
        return bool((self._read(stored, 0, 1 if len(stored.shape) > 1 else None) == 1).all())

    def _values(self, name: str) -> Array:
        """One of the module's tensors, as transformers' loader would make it."""
        parts = self.sources[name]
        shape = self.layout.module_shapes[name]
        if len(parts) == 1 and self._is_untouched_table(parts[0]):
            if parts[0].shape != shape:
                raise self._wrong_shape(name, parts[0].shape)
            return self._narrowed(parts[0])
        import numpy as np

        collected: dict[str, Any] = {"tensors": {}}
        with read_by_transformers(f"tensor {quoted(name)}", self.header.path):
            for stored in parts:
                result = self.processor.process(
                    weights=self._read(stored),
                    name=stored.name,
                    tensor_key_mapping=self.names,
                    parsed_parameters=collected,
                )
                if result.name in self.names:
                    collected["tensors"][self.names[result.name]] = result.weights
            values = np.asarray(collected["tensors"][name])
        if values.shape != shape:
            raise self._wrong_shape(name, values.shape)
        return values

    def _is_untouched_table(self, stored: GgufTensor) -> bool:
        if stored.name not in _VOCABULARY_TABLES or len(stored.shape) != 2:
            return False
        row = self._read(stored, 0, 1)
        result = self.processor.process(
            weights=row,
            name=stored.name,
            tensor_key_mapping=self.names,
            parsed_parameters={"tensors": {}},
        )
        return result.weights is row and result.name == stored.name

    def _narrowed(self, stored: GgufTensor) -> Array:
        """A table's values as they will be stored, converted some rows at a time."""
        import numpy as np

        rows, width = stored.shape
        out = np.empty(stored.shape, {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[self.dtype])
        step = max(1, _ELEMENTS_AT_ONCE // width)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            out[start:end] = encode(self._read(stored, start, end), self.dtype)
        return out

    def _read(self, stored: GgufTensor, start: int = 0, end: int | None = None) -> Array:
        """Rows `start` to `end` of a stored tensor, dequantised; all of it by default."""
        import numpy as np
        from gguf import GGMLQuantizationType, dequantize

        row_bytes = stored.nbytes // stored.shape[0]
        if end is None:
            shape, offset, count = stored.shape, 0, stored.nbytes
        else:
            shape = (end - start, *stored.shape[1:])
            offset, count = start * row_bytes, (end - start) * row_bytes
        data = np.fromfile(self.header.path, np.uint8, count, offset=stored.start + offset)
        # gguf wants the stored bytes in rows, as its own reader gives them.
        last = stored.nbytes // prod(stored.shape[:-1])
        kind = GGMLQuantizationType(stored.type_id)
        with np.errstate(all="ignore"):  # whoever writes the values looks whether they are finite
            return dequantize(data.reshape(*shape[:-1], last), kind).reshape(shape)

    def _wrong_shape(self, name: str, shape: tuple[int, ...]) -> OtterError:
        wanted = list(self.layout.module_shapes[name])
        return OtterError(
            f"{self.header.path}: tensor {quoted(name)} has shape {list(shape)}, and the file "
            f"describes a model in which it is {wanted}",
            hint="the file is damaged, or of a model that transformers' GGUF loader reads wrongly",
        )


class _ShallowModel:
    """A model as transformers' table of names asks for it, without the modules inside its parts.

    It asks every module of a model in turn, though some files go by the names of a part at most
    (Bloom's by those of its body), and gguf makes a table of all names for every one.
    """

    def __init__(self, model: Any, config: Any, depth: int) -> None:
        self.config = config
        self.state_dict = model.state_dict
        children = model.named_children() if depth else ()
        self._parts = [(name, _ShallowModel(part, config, depth - 1)) for name, part in children]

    def named_children(self) -> list[tuple[str, _ShallowModel]]:
        return self._parts


@dataclass(frozen=True)
class StoredNames:
    """How transformers stores a model's tensors: under the module's names, except where it fuses
    what is stored apart, such as a layer's experts.

    `origin` and `shapes` go by the names on disk, `module_shapes` by the module's.
    """

    model: Any
    module_shapes: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    identical: bool
    origin: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> StoredNames:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion

        tied = frozenset(model.all_tied_weights_keys)
        state = {name: value for name, value in model.state_dict().items() if name not in tied}
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        identical = not get_model_conversion_mapping(model, add_legacy=False)
        layout = cls(model, shapes, tied, identical)
        for name, value in state.items():
            stored = {name: value} if identical else revert_weight_conversion(model, {name: value})
            layout.origin.update(dict.fromkeys(stored, name))
            layout.shapes.update({key: tuple(part.shape) for key, part in stored.items()})
        return layout

    def to_disk(self, name: str, values: Array) -> dict[str, Array]:
        """The tensors on disk that one of the module's becomes."""
        if self.identical:
            return {name: values}
        import torch
        from transformers.core_model_loading import revert_weight_conversion

        if values.dtype.kind == "u":  # bits of bfloat16, in the form in which torch has them
            value = torch.from_numpy(values).view(torch.bfloat16)
        else:
            value = torch.from_numpy(values)
        stored = revert_weight_conversion(self.model, {name: value})
        return {key: as_array(part) for key, part in stored.items()}


def as_array(value: Any) -> Array:
    """A torch tensor as numpy has it: bfloat16, which numpy lacks, as its bits."""
    import torch

    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint16).numpy()
    return value.numpy()


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
        self.layout = StoredNames.of(description.model)
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

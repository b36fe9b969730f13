"""The recipe that `otter train` makes from data options.

It reads the data, or lets the base write texts and the teacher label them. Then it chooses the
settings that the user left open, and prints the recipe as YAML, to be saved and edited.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from otter_cli.core.atomic import write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.cli.data_options import DataOptions
    from otter_cli.signals.config import SignalConfig
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.recipe_from_data import DataFile


def recipe_from_options(
    folder: Path,
    options: DataOptions,
    overrides: Sequence[str],
    names: Sequence[str] | None,
    device: str,
) -> Recipe:
    """The recipe that trains the signals `names` (None: all) of a graft on the data. It is printed,
    and saved if the options say so. Raises OtterError."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families.shape import base_shape
    from otter_cli.graft.grafted_folder import open_graft
    from otter_cli.model.load import load_tokenizer
    from otter_cli.training.recipe import recipe_from_values
    from otter_cli.training.recipe_from_data import recipe_from_data, trainable_signals

    manifest = open_graft(folder)
    shape = base_shape(Checkpoint.open(folder).config)
    signals = [s for config in manifest.insertions for s in config.signals]
    signals = _selected_signals(signals, names)
    trainable_signals(options.kind, signals)
    tokenizer = load_tokenizer(folder)
    data = _data_file(folder, options, tokenizer, signals, device)
    values = recipe_from_data(
        data, signals, tokenizer, positions=shape.max_positions, width=shape.hidden
    )
    recipe = recipe_from_values(values, overrides, "the recipe made from the data")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=False)
    say(f"training by this recipe:\n{textwrap.indent(text.rstrip(), '  ')}")
    if (path := options.save_recipe) is not None:
        header = "# Made by otter train from a data file; copy and edit.\n"
        write_text(path, f"{header}# otter train OUT --recipe {path}\n\n{text}")
        say(f"saved to {path}")
    return recipe


def _selected_signals(
    signals: Sequence[SignalConfig], names: Sequence[str] | None
) -> list[SignalConfig]:
    """The signals of these names, or all. Raises OtterError for a name that the graft lacks."""
    own = [s.name for s in signals]
    for name in names or ():
        if name not in own:
            raise OtterError(
                f"the graft has no signal {name!r}", hint=f"it has {', '.join(own) or 'none'}"
            )
    return [s for s in signals if not names or s.name in names]


def _data_file(
    folder: Path,
    options: DataOptions,
    tokenizer: Any,
    signals: Sequence[SignalConfig],
    device: str,
) -> DataFile:
    from otter_cli.cli.data_columns import understood_columns
    from otter_cli.training.recipe_from_data import DataFile, trainable_signals

    if options.file is None:
        return _teacher_data_file(folder, options, tokenizer, signals, device)
    fitting = trainable_signals(options.kind, signals)
    columns = understood_columns(options, fitting)
    chat = False if options.raw else None
    test = options.test and options.test.resolve()
    return DataFile(options.kind, options.file.resolve(), columns, chat, test=test)


def _teacher_data_file(
    folder: Path,
    options: DataOptions,
    tokenizer: Any,
    signals: Sequence[SignalConfig],
    device: str,
) -> DataFile:
    """The base continues the prompts, and the teacher labels the texts."""
    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.teaching.continuations import ContinuationSettings
    from otter_cli.teaching.rows import TeachingSettings, teach
    from otter_cli.training.distributed import world_size
    from otter_cli.training.recipe_from_data import DataFile

    if world_size() > 1:
        raise OtterError(
            "--teacher writes and labels texts in one process, not under torchrun",
            hint="run it without torchrun, then --labels FOLDER/training/taught/rows-...jsonl",
        )
    assert options.teacher is not None and options.prompts is not None
    chat = bool(tokenizer.chat_template) and not options.raw
    continuations = ContinuationSettings(options.samples, options.new_tokens)
    teaching = TeachingSettings(options.teacher, options.prompts, chat, continuations)
    class_labels = next((s.labels for s in signals if s.kind == "classes" and s.size > 1), ())
    labels = list(options.label or class_labels) or None
    _check_signal_sizes(signals, labels or [""])
    model = OtterForCausalLM.from_pretrained(folder, device=device)
    taught = teach(folder, model, tokenizer, teaching, labels, device)
    text = "messages" if chat else "text"
    columns = {"text": text, "labels": list(taught.labels)}
    # Most of these texts are cut at --new-tokens, so no end token may be trained after them.
    return DataFile("labels", taught.path.resolve(), columns, chat, eos=False)


def _check_signal_sizes(signals: Sequence[SignalConfig], labels: Sequence[str]) -> None:
    """Raises OtterError if a signal takes another number of scores than the teacher gives."""
    for signal in signals:
        size = {"value": signal.size, "classes": signal.size, "vocabulary": 1}.get(signal.kind)
        if size is not None and size != len(labels):
            raise OtterError(
                f"signal {signal.name!r} takes {size} of the teacher's scores, and {len(labels)} "
                f"{'is' if len(labels) == 1 else 'are'} chosen",
                hint="--label SCORE, once for each; --signal NAME trains signals one by one",
            )

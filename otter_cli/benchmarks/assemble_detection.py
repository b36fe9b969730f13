"""The detection benchmark from folders: monitors on one base, and texts that they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from otter_cli.benchmarks import detectors
from otter_cli.benchmarks.benchmark import Setting
from otter_cli.benchmarks.contest import INSERTION
from otter_cli.benchmarks.detection import Detection
from otter_cli.benchmarks.labelled_texts import (
    Stream,
    encode_streams,
    of_labelled,
    of_pairs,
    require_both_kinds,
)
from otter_cli.benchmarks.models import (
    Grafted,
    load_graft,
    load_reward_model,
    require_same_base,
)
from otter_cli.benchmarks.names import PLAIN
from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.data.preference import Pair
from otter_cli.data.splits import rows_digest
from otter_cli.decoding import Sampling


@dataclass(frozen=True)
class Texts:
    """Labelled texts and the file that they are from. `held_out`: the digest of rows that a recipe
    leaves aside of its training rows."""

    file: Path
    streams: Sequence[Stream]
    held_out: str | None = None


def texts_of(
    recipe: Path | None, pairs: Path | None, data: Path | None, signal: str, folder: Path
) -> Texts:
    """The held-out rows of a training recipe, whose data files lie in `data`, or both texts of
    pairs; dialogues by the chat template of the graft in `folder`. Raises OtterError."""
    if (recipe is None) == (pairs is None):
        raise OtterError("give either --recipe or --pairs", hint="they name the texts to read")
    if recipe is None:
        assert pairs is not None
        return _of_both_kinds(pairs, of_pairs(_read_pairs(pairs, folder)))
    from otter_cli.signals import SignalConfig
    from otter_cli.training import load_recipe
    from otter_cli.training.material import held_out_rows
    from otter_cli.training.tokenizer import load_tokenizer

    loaded = load_recipe(recipe, data=data).only([signal])
    sources = loaded.signals[signal].sources
    tokenizer = load_tokenizer(folder)
    config = SignalConfig(name=signal, kind="classes", labels=(signal,))
    rows = held_out_rows(loaded.signals[signal], config, loaded.data_folder, tokenizer)
    if not rows:
        raise OtterError(f"{recipe} holds no rows aside", hint="give it a test file, or held_out")
    texts = _of_both_kinds(Path(sources[0].name), of_labelled(rows))
    return texts if sources[1] is not None else replace(texts, held_out=rows_digest(rows))


def _read_pairs(file: Path, folder: Path) -> Sequence[Pair]:
    from otter_cli.data.chat import Chat
    from otter_cli.data.columns import holds_messages, pair_prompt, sample_rows
    from otter_cli.data.preference import read_pairs
    from otter_cli.training.tokenizer import load_tokenizer

    sides, sample = ("chosen", "rejected"), sample_rows(file)
    prompt = pair_prompt(*sides, sample)
    dialogues = any(holds_messages(side, sample) for side in sides)
    table = Chat(file, load_tokenizer(folder), sides, prompt) if dialogues else file
    return read_pairs(table, prompt=prompt)


def _of_both_kinds(file: Path, streams: Sequence[Stream]) -> Texts:
    """Checked before any model is loaded."""
    require_both_kinds(streams, file)
    return Texts(file, streams)


def _warn_of_other_rows(graft: Grafted, signal: str, texts: Texts) -> None:
    """Another file, limit or version of the split leaves other rows aside than training did."""
    record = graft.model.manifest.training.get(signal)
    trained = (record.data.get("held_out") or {}) if record else {}
    if texts.held_out and "sha256" in trained and trained["sha256"] != texts.held_out:
        warn(
            f"{graft.record.name}: the rows that this recipe holds out are not those that "
            f"{signal!r} was trained without: some of these texts may be its training rows"
        )


def detection(
    folder: Path,
    texts: Texts,
    signal: str,
    *,
    limit: int | None = None,
    limit_seed: int = 0,
    monitors: Mapping[str, Path] | None = None,
    classifier: Path | None = None,
    device: str = "cpu",
) -> Detection:
    """The graft's signal beside other grafts' (task heads), probes and a separate classifier."""
    from otter_cli.training.probe import PROBE

    graft = load_graft(folder, signal, device=device)
    _warn_of_other_rows(graft, signal, texts)
    prompts, record = encode_streams(
        texts.streams, texts.file, graft.tokenizer,
        positions=graft.model.shape.max_positions, limit=limit, limit_seed=limit_seed,
    )  # fmt: skip
    compared = {
        PLAIN: detectors.base_alone(graft),
        INSERTION: detectors.by_signal("insertion", graft, signal),
    }
    for name, path in (monitors or {}).items():
        if (path / PROBE).is_file():
            compared[name] = detectors.by_probe(name, graft, path, signal)
            continue
        other = load_graft(path, signal, device=device)
        require_same_base(graft, other, path)
        _warn_of_other_rows(other, signal, texts)
        compared[name] = detectors.by_signal(name, other, signal)
    if classifier is not None:
        separate, _, model = load_reward_model(classifier, device=device)
        compared["classifier"] = detectors.by_classifier("classifier", graft, separate, model)
    return Detection(Setting(prompts, record, Sampling(1)), graft, compared, {})

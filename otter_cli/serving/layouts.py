"""The result of an export, and the two exact layouts: the adapter alone, and the base alone.

Both are read again after they were written; their bits are those of the graft.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.checkpoint.link_or_copy import PlacementMode, place_files
from otter_cli.core.atomic import staged_folder
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_shape
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import inserted_files, open_inserted_tensors
from otter_cli.graft.surgery import strip


@dataclass(frozen=True)
class SignalDifference:
    """How far a signal of a wide export is from the graft's. `largest` absolute difference;
    `scale`: the largest absolute value in the graft; `lost`: how many values are finite in the
    graft alone."""

    largest: float
    scale: float
    tolerance: float
    lost: int

    @property
    def within_tolerance(self) -> bool:
        return not self.lost and self.largest <= self.tolerance * max(1.0, self.scale)


@dataclass(frozen=True)
class WideDifference:
    """How far a wide export is from its graft, over one batch of random tokens in one dtype.
    `moved` of all `logits` differ, by `largest` at most; `flipped` of all `tokens` have another
    argmax; `lost` logits are finite in the graft alone, as where the inserted part overflows."""

    dtype: str
    tokens: int
    logits: int
    moved: int
    largest: float
    flipped: int
    lost: int
    signals: dict[str, SignalDifference]

    @property
    def within_tolerance(self) -> bool:
        return not self.lost and all(signal.within_tolerance for signal in self.signals.values())


@dataclass(frozen=True)
class Export:
    """The files that were written, and the verdict on them. `differences` are measured where bits
    are not promised; `unmeasured` gives the reason for each dtype that could not be measured on
    this machine."""

    files: list[str]
    verdict: Literal["exact", "close", "different", "not measured"]
    statement: str
    differences: list[WideDifference] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)


def export_adapter(folder: Path, to: Path) -> Export:
    """Writes the inserted tensors and otter.json alone; they load on this base and no other."""
    manifest = open_graft(folder)
    shape = base_shape(Checkpoint.open(folder).config)
    files = [*inserted_files(folder), MANIFEST]
    with staged_folder(to, sources=[folder]) as staging:
        place_files(folder, files, staging, mode="copy")
        written = Manifest.read(staging)
        written.check_tensors(staging)
        tensors = open_inserted_tensors(staging, written.plans(shape)).tensors
    base = manifest.base
    origin = base.source + (f" at {base.revision}" if base.revision else "")
    return Export(
        files,
        "exact",
        f"{len(tensors)} tensors, as planned and by their digests; they load on {origin} alone, "
        f"known by the digests of {len(base.identity())} files",
    )


def export_base(folder: Path, to: Path, *, mode: PlacementMode = "link") -> Export:
    """Writes the base as it was before grafting (`strip`), and checks the digest of each file."""
    recorded = strip(folder, to, mode=mode)
    for name, record in recorded.items():
        if sha256_file(to / name) != record.sha256:
            raise reads_otherwise(to / name)
    return Export(
        list(recorded), "exact", f"{len(recorded)} files, byte for byte as they were grafted"
    )


def reads_otherwise(path: Path) -> OtterError:
    return OtterError(
        f"{path} does not read back as it was written",
        hint="the disk or its memory fails: try another one",
    )

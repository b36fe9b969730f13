"""SIGKILL at random moments of a graft, in processes forked from one that has everything imported.

python -m tests.property.graft_kills BASE COUNT SEED
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.link_or_copy import PlacementMode
from otter_cli.core.console import set_quiet
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import plan_insertion
from otter_cli.graft.storage import open_inserted_tensors
from otter_cli.graft.surgery import graft
from tests.support.kills import forked, killed_after


class Killer:
    """Grafts `base` into `work` again and again, and kills each graft at a random moment."""

    def __init__(self, base: Path, work: Path, seed: int) -> None:
        self.base, self.out, self.random = Checkpoint.open(base), work / "out", Random(seed)
        set_quiet(True)  # without it, every child imports what draws the progress bar
        self.plan = plan_insertion(self.base, ["reward"], hidden=8, heads=2, ffn=16)
        self.seconds = min(self._undisturbed() for _ in range(3))

    def kill(self, count: int) -> Counter[str]:
        """Of `count` killed grafts, how many left nothing, and how many the whole folder. Raises
        AssertionError for anything between, and if the next graft does not succeed."""
        found: Counter[str] = Counter()
        while found.total() < count:
            mode: PlacementMode = self.random.choice(["link", "copy"])
            moment = self.random.uniform(0, 1.5 * self.seconds)
            if os.WIFSIGNALED(killed_after(moment, partial(self._graft, mode))):
                found["whole" if self.out.exists() else "nothing"] += 1
            if not self.out.exists():
                self._graft(mode)
            self._check_whole()
            shutil.rmtree(self.out)
        return found

    def _undisturbed(self) -> float:
        start = time.perf_counter()
        os.waitpid(forked(partial(self._graft, "copy")), 0)
        seconds = time.perf_counter() - start
        self._check_whole()
        shutil.rmtree(self.out)
        return seconds

    def _graft(self, mode: PlacementMode) -> None:
        graft(self.base, self.out, self.plan, mode=mode)

    def _check_whole(self) -> None:
        manifest = Manifest.read(self.out)
        manifest.check_tensors(self.out)
        open_inserted_tensors(self.out, [self.plan])
        names = {path.name for path in self.out.iterdir()}
        assert names == {*self.base.files, "otter.json", "otter.safetensors"}
        for name in self.base.files:
            assert (self.out / name).read_bytes() == (self.base.path / name).read_bytes()


def main(base: str, count: str, seed: str) -> None:
    # In memory if possible, because every graft waits for its disk some dozen times.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        root = Path(name)
        found = Killer(shutil.copytree(base, root / "base"), root, int(seed)).kill(int(count))
        assert [path.name for path in root.iterdir()] == ["base"]
    print(
        json.dumps({"kills": found.total(), "nothing": found["nothing"], "whole": found["whole"]})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

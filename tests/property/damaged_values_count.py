"""What every verb makes of every damaged value of every configuration file, counted.

python -m tests.property.damaged_values_count --out results/robustness/damaged-values.json
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from otter_cli.cli.main import main as otter_main
from otter_cli.core.provenance import provenance
from tests.support.damaged_runs import VERBS, Run, count_damages, graft_of, write_recipe
from tests.support.damaged_values import damages


def run_here(*arguments: object) -> Run:
    """A verb in this process, which has loaded torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = otter_main([str(argument) for argument in arguments])
    return Run(code, out.getvalue(), err.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verbs", nargs="*", choices=list(VERBS), default=list(VERBS))
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", COLUMNS="100")
    from transformers.utils import logging

    from tests.support.checkpoints import write_checkpoint

    logging.disable_progress_bar()
    counts, broken = {}, list[str]()
    with tempfile.TemporaryDirectory() as name:
        beside = Path(name)
        write_checkpoint(beside / "base", "llama")
        folders = {"base": beside / "base", "graft": graft_of(beside / "base", beside / "g")}
        write_recipe(beside)
        for verb in options.verbs:
            started = time.process_time()
            ended, said = count_damages(run_here, verb, damages(folders["base"]), folders, beside)
            counts[verb] = dict(sorted(ended.items()))
            broken += said
            print(verb, counts[verb], f"{time.process_time() - started:.0f} s of CPU", flush=True)
    print(*broken, sep="\n\n")
    record = {
        "damaged": counts,
        "provenance": provenance(
            [Path(sys.executable).name, "-m", "tests.property.damaged_values_count"]
        ),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()

"""What a score still tells of texts that a guide by it, or by another score, has written.

    python -m tests.performance.guided_scores TO --run DETOX_RUN --methods plain insertion ...
        --score NAME=FOLDER=SIGNAL ...

By method and score: the mean score of whole texts (as a probability), and its correlation with the
run's judge, which guided nothing.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.core.atomic import write_json
from otter_cli.core.intervals import correlation, interval, mean
from otter_cli.core.provenance import provenance
from otter_cli.model.otter import OtterForCausalLM
from tests.performance.first_token import scores_of, texts_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--score", nargs="+", required=True)
    asked = parser.parse_args()
    names = [score.split("=") for score in asked.score]
    ends = OtterForCausalLM.from_pretrained(names[0][1]).generation_config.eos_token_id
    rows: dict[str, Any] = {}
    for method in asked.methods:
        texts = [t for some in texts_of([asked.run], ends, method).values() for t in some]
        judged = np.array([toxicity for _, _, toxicity in texts])
        rows[method] = {"judge": asdict(interval(mean(judged), len(judged)))}
        for name, folder, signal in names:
            last = [scores[-1] for scores in scores_of(Path(folder), signal, texts)]
            shares = 1 / (1 + np.exp(-np.array(last, float)))
            rows[method][name] = {
                "mean": asdict(interval(mean(shares), len(shares))),
                "correlation": asdict(interval(correlation(shares, judged), len(shares))),
            }
            print(method, name, rows[method][name]["mean"], rows[method][name]["correlation"])
    write_json(asked.to, {"rows": rows, "versions": provenance()["versions"]})


if __name__ == "__main__":
    main()

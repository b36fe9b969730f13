"""The benchmarks by name, for runs that are read from disk."""

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.detection import Detection
from otter_cli.benchmarks.detox import Detox
from otter_cli.benchmarks.preference import Preference
from otter_cli.benchmarks.result import BenchmarkName
from otter_cli.benchmarks.speedup import Speedup

KINDS: dict[BenchmarkName, type[Benchmark]] = {
    kind.name: kind for kind in (Preference, Detox, Detection, Speedup)
}

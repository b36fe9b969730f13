import json
import subprocess
import sys
from datetime import datetime

import numpy as np

from otter_cli.core.provenance import hardware, provenance, versions


def test_versions_are_the_installed_ones() -> None:
    found = versions()
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "an-absent-package" not in found


def test_hardware_is_counted() -> None:
    found = hardware()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["cpu"] and found["system"]


def test_provenance_is_json_with_a_readable_time() -> None:
    found = json.loads(json.dumps(provenance(["otter", "graft"])))
    assert found["command"] == ["otter", "graft"]
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None
    assert provenance()["command"] == sys.argv


def test_core_imports_nothing_heavy() -> None:
    code = (
        "import sys; from otter_cli.core import "
        "atomic, console, digests, errors, formatting, jsonlines, process, provenance; "
        "provenance.provenance(); "
        "print(*{'torch', 'transformers', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""

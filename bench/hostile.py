"""The hostile-input suite with many examples, drawn anew: ``python bench/hostile.py --examples 2000``.

The property is that of ``tests/hostile``: no traceback, no hang, nothing saved lost, one line with exit code 2. With
many examples the suite also tries commands that work on a finished run (predict, report, finetune).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="a property each")
    parser.add_argument("--only", default="", help="tests whose name holds this, as for pytest -k")
    arguments = parser.parse_args()
    words = [sys.executable, "-m", "pytest", "-q", "tests/hostile", "-k", arguments.only]
    environment = os.environ | {"PGNAS_HOSTILE_EXAMPLES": str(arguments.examples)}
    return subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

"""``python -m pgnas`` is the command ``pgnas``."""

from __future__ import annotations

import sys

from pgnas.cli import main

if __name__ == "__main__":
    sys.exit(main())

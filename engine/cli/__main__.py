"""`python -m meles.engine.cli`.

Runs in: supervisor.
"""

from __future__ import annotations

import sys

from meles.engine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

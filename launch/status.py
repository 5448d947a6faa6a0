#!/usr/bin/env python3
"""Show how far the phases of a run are: `hpc-stres status` out of a checkout, before anything is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpc_stres.launch.status import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Submit the phases of a run as dependent jobs: `hpc-stres submit` out of a checkout, before anything is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpc_stres.launch.submit import main

if __name__ == "__main__":
    sys.exit(main())

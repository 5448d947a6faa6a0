"""Run what a job was submitted to call: `python -m hpc_stres.launch.work CALL.pkl`, for jobs that
srun does not start.

submitit's own entry names its files by srun's rank, which processes of mpirun share.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run it; the exit status."""
    from submitit.core.utils import DelayedSubmission

    DelayedSubmission.load(Path(sys.argv[1])).result()
    return 0


if __name__ == "__main__":
    sys.exit(main())

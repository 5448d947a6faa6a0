"""One rank that trains several times in one process: importing everything once is what costs in
such tests."""

import hashlib
import json
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest


def global_generators():
    """A hash of the state of every generator that code could draw from without saying so."""
    import torch

    states = (
        torch.get_rng_state().numpy().tobytes(),
        repr(np.random.get_state()),
        repr(random.getstate()),
    )
    return hashlib.sha256(repr(states).encode()).hexdigest()


def main():
    from hpc_stres.errors import UserError
    from hpc_stres.parallel.world import find_world
    from hpc_stres.training.phase import train
    from tests.conftest import tiny_config

    for work in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = str(work["port"])
        config = tiny_config(work["data_root"], *work["overrides"])
        before = global_generators()
        refusals = work.get("refusals")
        if refusals is not None:
            with pytest.raises(UserError, match=re.escape(refusals[int(os.environ["RANK"])])):
                train(config, work["phase"], Path(work["run_dir"]), find_world())
            continue
        assert train(config, work["phase"], Path(work["run_dir"]), find_world())
        assert global_generators() == before, f"{work}: a global generator was drawn from"


if __name__ == "__main__":
    sys.exit(main())

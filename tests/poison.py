"""A node or a rank that does not do its work: what runs first in each Python process under this folder's name in
PYTHONPATH. `POISON` says how, `POISONED` which nodes (or `rank N`), with commas between, and `POISONED_PHASE` in the
jobs of which phase alone."""

SITE = """
import os, sys
mode, node = os.environ.get("POISON", ""), os.environ.get("SLURMD_NODENAME", "")
is_rank = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_ID", "") not in ("", "4294967291", "batch")
is_rank = is_rank or "RANK" in os.environ
bad = os.environ.get("POISONED", "").split(",")
is_bad = (node in bad or "rank " + os.environ.get("RANK", "") in bad) and (
    "-" + os.environ.get("POISONED_PHASE", "") in "-" + os.environ.get("SLURM_JOB_NAME", "")
)
if is_rank and is_bad and mode == "dies":
    os._exit(9)
if is_rank and is_bad and mode == "silent":
    import time
    time.sleep(600)
if is_rank and is_bad and mode == "full":
    os.environ["TMPDIR"] = os.environ["FULL"]
if is_rank and mode == "name" and not os.environ.get("SLURM_JOB_NODELIST", "").startswith(
    (os.environ["POISONED"] + ",", "n[1")
):
    os.environ["MASTER_ADDR"] = "127.0.0.1"
if is_rank and (mode == "crashes" or (is_bad and mode in ("slow", "hangs", "slow, then hangs"))):
    import importlib.abc, importlib.machinery, time

    def patch(trainer):
        real = trainer.Trainer.micro_step
        took = [0.0]

        def step(self, *arguments):
            if mode == "crashes" and self.step == 3:
                raise ValueError("the script is wrong")
            if mode == "hangs" and self.step == 7:
                time.sleep(600)
            if mode.startswith("slow"):
                # On a slow machine, too, it is slower than the others.
                time.sleep(max(0.2, 2 * took[0]))
            if mode == "slow, then hangs" and self.step == 28:
                time.sleep(600)
            begun = time.monotonic()
            result = real(self, *arguments)
            took[0] = time.monotonic() - begun
            return result

        trainer.Trainer.micro_step = step

    class Hook(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "hpc_stres.training.trainer":
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def run(module):
                execute(module)
                patch(module)

            spec.loader.exec_module = run
            return spec

    sys.meta_path.insert(0, Hook())
"""


def write(folder):
    """Make the folder that goes into PYTHONPATH."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(SITE)

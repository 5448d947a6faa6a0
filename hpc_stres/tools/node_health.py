"""What a node can say against itself before a job spends time on it: its own disk, and its
GPUs' memory errors.

Asked by the first rank of each node at the start of every job, before anything heavy is imported.
"""

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hpc_stres.parallel.world import expand_nodes
from hpc_stres.run.bad_nodes import Kind, node_name

TMP_BYTES = 1 << 20
NVIDIA_SMI_SECONDS = 30.0
# Columns of nvidia-smi, and the sentence for each that is not zero. A GPU that has not
# got one says N/A.
GPU_COUNTS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors (ECC) since its start",
    "remapped_rows.failure": "broken rows of memory that could not be remapped",
}
NONE = ("", "0", "No", "N/A", "[N/A]", "[Not Supported]", "Not Supported")


def nodes_of_job() -> tuple[str, ...]:
    """Names of the nodes that this job has; this one alone outside of Slurm."""
    return names_of(os.environ.get("SLURM_JOB_NODELIST", "")) or (node_name(),)


def names_of(nodelist: str) -> tuple[str, ...]:
    """The nodes of a Slurm node list; none of an empty one."""
    return tuple(expand_nodes(nodelist)) if nodelist else ()


def complaints(has_gpus: bool) -> list[tuple[Kind, str]]:
    """What is wrong with this node, as a kind and a sentence each."""
    reasons: list[tuple[Kind, str]] = [
        ("disk", text) for text in [disk_fault(temporary_folder())] if text
    ]
    if has_gpus:
        reasons += [("gpu", text) for text in gpu_faults()]
    return reasons


def temporary_folder() -> Path:
    """Where this node's programs put their temporary files."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def disk_fault(folder: Path) -> str:
    """Why a megabyte cannot be written into a folder; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(os.urandom(TMP_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        return f"{folder} {what}: {error.strerror or error}"
    return ""


def gpu_faults() -> list[str]:
    """What nvidia-smi tells of this job's GPUs; nothing where there is no nvidia-smi or it has
    no such columns."""
    if shutil.which("nvidia-smi") is None:
        return []
    faults = []
    for column in GPU_COUNTS:
        words = ["nvidia-smi", f"--query-gpu=index,{column}", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(
                words, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return [f"nvidia-smi does not answer within {NVIDIA_SMI_SECONDS:.0f} s"]
        except OSError as error:
            return [f"nvidia-smi cannot be started: {error.strerror or error}"]
        faults += parse_counts(column, answer.stdout) if answer.returncode == 0 else []
    return faults


def parse_counts(column: str, text: str) -> list[str]:
    """Sentences for the rows `index, count` of one column that are not zero."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    return [
        f"GPU {row[0]}: {row[1]} {GPU_COUNTS[column]}"
        for row in rows
        if len(row) == 2 and row[1] not in NONE
    ]

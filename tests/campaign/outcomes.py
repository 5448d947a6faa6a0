"""Many small trials in one child, each of which may end it: what came of them is told through a pipe."""

import json
import os
import sys
import traceback
from collections.abc import Callable

from tests.campaign.judge import Outcome


def outcomes_of(work: Callable[[Callable[[Outcome], None]], None]) -> tuple[list[Outcome], int]:
    """What work tells in a child, so that a signal is an outcome as well; and the child's status as a
    shell has it (negative for a signal, 1 where the work itself failed, which it says)."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        status = 1
        try:
            work(lambda one: _tell(one, writing))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stream:
        told = [Outcome(*json.loads(line)) for line in stream if line.endswith("\n")]
    return told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _tell(one: Outcome, writing: int) -> None:
    os.write(writing, f"{json.dumps([one.verdict, one.why])}\n".encode())

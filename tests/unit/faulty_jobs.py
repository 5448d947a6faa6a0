"""Jobs for child processes that die, or never end, where they are told to. Imports nothing, so that children start at
once."""

import os
import time


def dies(path):
    if path == "bad":
        os._exit(3)
    return path


def hangs(path):
    if path == "bad":
        time.sleep(100)
    return path

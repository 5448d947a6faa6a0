"""A program that says who it is, and then sleeps."""

import json
import os
import sys
import time

if __name__ == "__main__":
    who = {"pid": os.getpid(), "session": os.getsid(0), "rank": os.environ.get("RANK")}
    print(json.dumps({**who, "words": sys.argv[1:], "home": os.getcwd()}), flush=True)
    time.sleep(3600)

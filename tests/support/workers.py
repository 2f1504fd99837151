"""Stand-ins for the decoder in worker processes; without torch, so that a new process starts quickly."""

import os
import signal
import time

from videossl_core.data import frames

DECODE = frames._try_video  # before any test puts something in its place


def logged(job):
    """Decode, and note it in a log."""
    with open(os.environ["DECODED_LOG"], "a") as f:
        f.write(f"{job[0]}\n")
    return DECODE(job)


def slow(job):
    time.sleep(0.03)
    return DECODE(job)


def misbehave(job):
    """Stands for a decoder with bugs: a video's name says what happens to its process."""
    if "segfault" in job[0]:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in job[0]:
        time.sleep(600)
    if "exit" in job[0]:
        os._exit(3)
    return DECODE(job)

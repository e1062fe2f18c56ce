"""Ties a worker process to the server that started it.

BentoML's supervisor starts workers in sessions of their own. When it is killed with SIGKILL they live on,
keep the port, and a restarted server cannot have it. Linux can send a signal at the parent's death; other
systems keep BentoML's behaviour.
"""

import ctypes
import os
import signal
import sys

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> bool:
    """Asks the kernel to kill this process when its parent dies: at once, so that a restart finds the port free."""
    if sys.platform != "linux":
        return False
    parent = os.getppid()
    done = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if done and os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
    return done

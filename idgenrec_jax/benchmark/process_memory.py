"""The most memory that a process has held; needs the standard library only."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def process_peak_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    # Linux lets a new program begin with its parent's ru_maxrss; VmHWM begins anew.
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

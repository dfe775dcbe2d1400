"""``python -m clipbench.device facts|bounds DEVICE FILE``: the two steps that are no command of
clipbench, each in a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipbench.device import folder, measuring

MEASURES = {"facts": measuring.facts, "bounds": measuring.bounds}

if __name__ == "__main__":
    what, device, file = sys.argv[1:]
    try:
        for found in MEASURES[what](device):  # what is known so far, again and again
            folder.write_json(Path(file), found)
    except KeyboardInterrupt:
        sys.exit(130)

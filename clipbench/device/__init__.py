"""One command for somebody who has a GPU for a few minutes: tests, studies, timings and bounds
within a time budget, in a folder that can be kept.

`steps` says what is done and for how long, `course` does it, `folder` keeps it, `measuring` and
`bounds` say what the device should reach, `page` tells it. It prints nothing.
"""

from clipbench.device.course import Ending, run

__all__ = ["Ending", "run"]

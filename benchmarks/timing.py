"""How long a block of steps takes: the same for torch's contenders and for JAX's, and so without
either.
"""

import math
import sys
import time
from statistics import median

WARM_UP = 0.25  # seconds, at least, after the first block: that one may compile


def timed(block, count, seconds, meet):
    """Microseconds of one cell and step, the median over blocks of ``count``; a block returns
    losses.

    :param meet: called when all is warm, to begin together with others.
    """
    begin = time.perf_counter()
    block()
    first = time.perf_counter() - begin
    while time.perf_counter() - begin < first + WARM_UP:
        block()
    meet()
    times, start, used = [], time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        losses = block()
        times.append((time.perf_counter() - begin) / count * 1e6)
    cores = (time.process_time() - used) / (time.perf_counter() - start)
    if not all(map(math.isfinite, losses)):
        raise ValueError("a loss is not finite: what was timed is no training")
    return {
        "microseconds": median(times),
        "least": min(times),
        "blocks": len(times),
        "cores": cores,
        "first": first,
    }


def ready():
    """Say that this process is ready, and wait until the one that started it says go on."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()

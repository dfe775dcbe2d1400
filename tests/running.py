"""A function in a worker process of its own, as pilots, timings and replays are."""

from clipbench.execute import LIMIT, Call, Local, Setting, call


def called(function, *arguments, use=(), device="cpu", threads=1, what="the sum", limit=LIMIT):
    with Local(1) as executor:
        return call(
            executor, Call(function, arguments, what), Setting(tuple(use), threads, device), limit
        )

"""``python -m clipbench``, and the command ``clipbench``."""

import gc
import os
import signal


def main() -> None:
    """Run the command line. An interruption of its start, while it imports, is one sentence,
    too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from clipbench.cli import main as run

    try:
        run()
    finally:
        gc.freeze()  # at its end Python would look at all of torch's objects again: .4 s


def _leave(number: int, _: object) -> None:
    """End at once: an exception in an import half done may come out as any other."""
    os.write(2, b"clipbench: interrupted; nothing that was stored is lost.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()

"""What a client outside the tree notes of its server: how many answers came, and when it had to wait for one.

`progress` always holds the number of answers. `gaps` lists in the end every wait of more than 50 ms: begin and end by
CLOCK_MONOTONIC in nanoseconds. `verdict` is `ok` when every answer was the right one; else the client ends with words.
"""
import os, threading, time

answers = 0
_gaps = []
_noted = 0
_progress = os.open("progress", os.O_CREAT | os.O_WRONLY, 0o644)


def heard(since, count=1):
    """So many answers have come to somebody who has waited since then. Gives the time."""
    global answers, _noted
    now = time.monotonic_ns()
    answers += count
    if now - since > 50_000_000:
        _gaps.append((since, now))
    if now - _noted > 5_000_000:
        os.pwrite(_progress, b"%012d\n" % answers, 0)
        _noted = now
    return now


def stop():
    """Whether the test has seen enough."""
    return os.path.exists("stop")


def end():
    """Everything was right."""
    with open("gaps", "w") as file:
        file.writelines("%d %d\n" % gap for gap in _gaps)
    with open("verdict", "w") as file:
        file.write("ok\n")


def together(works):
    """Does all of this at the same time, each work being a function and its arguments, and then ends."""
    failed = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            failed.append(f"{work.__name__}: {error!r}")

    threads = [threading.Thread(target=guarded, args=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failed:
        time.sleep(0.05)
    assert not failed, failed
    end()

"""Threads of python3: a pool, a queue, conditions and events, and work outside the interpreter's lock. What is printed
does not depend on who did what."""

import hashlib
import queue
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

BLOCK = bytes(range(256)) * 2048


def digest(number: int) -> str:
    """Hashes outside the lock, and compresses."""
    data = number.to_bytes(4, "little") + BLOCK
    return hashlib.sha256(zlib.compress(data, 1) * 4).hexdigest()[:16]


with ThreadPoolExecutor(4) as pool:
    for number, found in enumerate(pool.map(digest, range(48))):
        print(number, found)

numbers: queue.Queue[int | None] = queue.Queue(maxsize=8)
counted: dict[int, int] = {}
lock = threading.Lock()


def count() -> None:
    """Takes numbers until there are no more."""
    while (taken := numbers.get()) is not None:
        with lock:
            counted[taken % 7] = counted.get(taken % 7, 0) + taken


takers = [threading.Thread(target=count) for _ in range(3)]
for taker in takers:
    taker.start()
for number in range(6000):
    numbers.put(number)
for _ in takers:
    numbers.put(None)
for taker in takers:
    taker.join()
print(sorted(counted.items()))

barrier, event, local = threading.Barrier(4), threading.Event(), threading.local()
rounds: list[int] = []


def meet() -> None:
    """Comes to the barrier many times; one of all notes that."""
    event.wait()
    local.times = 0
    for _ in range(200):
        if barrier.wait() == 0:
            rounds.append(1)
        local.times += 1
    assert local.times == 200


meeting = [threading.Thread(target=meet) for _ in range(4)]
for each in meeting:
    each.start()
event.set()
for each in meeting:
    each.join()
print(len(rounds), threading.active_count())

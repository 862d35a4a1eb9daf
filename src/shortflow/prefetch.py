"""What is needed next, prepared by a background thread while the present is worked on."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(make: Callable[[int], T], numbers: range, *, ahead: int = 2) -> Generator[T, None, None]:
    """make(k) for every number k, in order, each prepared up to `ahead` numbers before its turn by one thread.

    One thread, so `make` need not be safe to call from several. It ends with the iterator: when this is used up,
    closed, or left by an error. An error of make(k) is raised where its result would have been.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="shortflow-prefetch")
    try:
        todo = iter(numbers)
        waiting: deque[Future[T]] = deque(worker.submit(make, k) for k in islice(todo, ahead))
        while waiting:
            future = waiting.popleft()
            waiting.extend(worker.submit(make, k) for k in islice(todo, 1))
            yield future.result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)

"""Several trainings at once, each in a process of its own, as long as there is time for another one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from experiments.gpu.store import Store

#: Seconds kept for what follows the trainings, such as measuring latency.
_RESERVE = 45.0


def run(store: Store, jobs: Mapping[str, Callable[[], dict[str, Any]]], workers: int, deadline: float) -> bool:
    """Run what the store does not hold yet, in order, and add each record as it comes.

    A job is started only while the longest one so far, started now, would end before the deadline.

    Args:
        store: takes the records.
        jobs: by key; each can be pickled.
        workers: how many run at once; in this process, one after the other, when 0.
        deadline: by ``time.monotonic()``.

    Returns:
        Whether all are done. A job that fails is reported and left undone; the others go on.
    """
    waiting = [key for key in jobs if key not in store]
    print(f"{store.path.stem}: {len(jobs) - len(waiting)} of {len(jobs)} are done", flush=True)
    if workers == 0:
        for key in waiting:
            with reported(key):
                store.add(key, jobs[key]())
        return all(key in store for key in jobs)
    running: dict[Future[dict[str, Any]], tuple[str, float]] = {}
    longest = 0.0
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        while waiting or running:
            if waiting and time.monotonic() + longest + _RESERVE > deadline:
                print(f"no time for {', '.join(waiting)}; call again to go on", flush=True)
                waiting = []
            while waiting and len(running) < workers:
                key = waiting.pop(0)
                running[pool.submit(jobs[key])] = (key, time.monotonic())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, began = running.pop(future)
                longest = max(longest, time.monotonic() - began)
                with reported(key):
                    store.add(key, future.result())
    return all(key in store for key in jobs)


@contextmanager
def reported(key: str) -> Iterator[None]:
    """Print what fails and go on: what costs a GPU's minutes is not given up for one part of it."""
    try:
        yield
    except Exception:  # whatever a training or a compiler raises
        traceback.print_exc()
        print(f"{key} failed", flush=True)

"""Several trainings at once, each in a process of its own, as long as there is time for another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
        Whether all are done.

    Raises:
        Exception: what a job raised, once the others that run have ended.
    """
    waiting = [key for key in jobs if key not in store]
    print(f"{store.path.stem}: {len(jobs) - len(waiting)} of {len(jobs)} are done", flush=True)
    if workers == 0:
        while waiting:
            key = waiting.pop(0)
            store.add(key, jobs[key]())
        return True
    running: dict[Future[dict[str, Any]], tuple[str, float]] = {}
    longest = 0.0
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                if time.monotonic() + longest + _RESERVE > deadline:
                    print(f"no time for {', '.join(waiting)}; call again to go on", flush=True)
                    waiting = []
                    break
                key = waiting.pop(0)
                running[pool.submit(jobs[key])] = (key, time.monotonic())
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                key, began = running.pop(future)
                store.add(key, future.result())
                longest = max(longest, time.monotonic() - began)
    return all(key in store for key in jobs)

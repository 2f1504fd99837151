"""Work in processes of its own, where a crash or a hang costs one job and nothing else."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from pebble import ProcessExpired, ProcessPool

from videossl_core.data import files


class Lost(RuntimeError):
    """A job has no result: its process died, or it took longer than allowed."""


def quiet(items: Iterable, total: int, label: str, done: int = 0) -> Iterable:
    """A progress display that shows nothing; see ``progress.progress`` for one that does."""
    return items


def each(
    function: Callable[[Any], Any], jobs: Iterable, workers: int | None = None, timeout: float | None = None
) -> Iterator[tuple[Any, Any]]:
    """Pairs of a job and its result, or the exception that took its place, as they are done.

    Args:
        function: of a module, not of a notebook cell; it runs in other processes.
        workers: how many of them; None is one per core.
        timeout: seconds that one job may take before its process is killed.
    """
    # forkserver: forking a process that has already decoded video or started threads may hang the child
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    jobs = list(jobs)
    workers = max(1, min(workers or os.cpu_count() or 1, len(jobs)))
    jobs = iter(jobs)
    pool = ProcessPool(workers, context=context)
    flying = {}
    try:
        while True:
            for job in islice(jobs, 4 * workers - len(flying)):
                flying[pool.schedule(function, args=[job], timeout=timeout)] = job
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                yield flying.pop(future), _outcome(future, timeout)
    except BaseException:
        pool.stop()
        raise
    else:
        pool.close()  # not stop: a process that is just starting would complain on the screen
    finally:
        pool.join()


def _outcome(future, timeout: float | None) -> Any:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return RuntimeError(f"no worker process can start, see above why. In a script, {files.UNGUARDED}")
    if error is None:
        return future.result()
    if isinstance(error, TimeoutError):
        return Lost(f"time-out: not done within {timeout:g} s")
    if isinstance(error, ProcessExpired):
        return Lost(f"crash: the process ended with exit code {error.exitcode}")
    return error

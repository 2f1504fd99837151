"""Work in separate processes, where a crash or a hang costs one job and nothing else."""

import multiprocessing
import os
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

from pebble import ProcessExpired, ProcessPool

from videossl_core.data import files


class Lost(RuntimeError):
    """A job has no result: its process died, or it took longer than allowed."""


IMPORTED: set[str] = set()


def context(module: str) -> BaseContext:
    """How worker processes start. Not by fork, for the child of a process that has already decoded video or
    started threads may hang; Windows knows only spawn, which takes longer. Elsewhere a server forks them,
    which imports once, as its first process starts, the modules that were asked for until then."""
    known = multiprocessing.get_all_start_methods()
    made = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    IMPORTED.add(module)
    made.set_forkserver_preload(sorted(IMPORTED))
    return made


def cores() -> int:
    """How many CPU cores this job may use: on a cluster or in a container fewer than the machine has."""
    from joblib import cpu_count  # knows affinity and a container's share; here, for it takes a while to load

    return min(cpu_count(), int(os.environ.get("SLURM_CPUS_PER_TASK", cpu_count())))


BROKEN = f"no worker process can start; the cause is above. In a script, {files.UNGUARDED}"


def map_unordered(
    function: Callable[[Any], Any],
    jobs: list,
    workers: int | None = None,
    timeout: Callable[[Any], float] | None = None,
) -> Generator[tuple[Any, Any], None, None]:
    """Pairs of a job and its result, or the ``Lost`` that took its place, in the order of completion.

    An exception that a job raises ends the others too. There is one process per core unless ``workers`` says
    how many; one whose job takes longer than ``timeout(job)`` seconds is killed. The function runs in them,
    so it must be of a module, not of a notebook cell.
    """
    workers = max(1, min(workers or cores(), len(jobs)))
    waiting = iter(jobs)
    running: dict[Future, Any] = {}
    with ProcessPool(workers, context=context(function.__module__)) as pool:
        try:
            while True:
                for job in islice(waiting, 4 * workers - len(running)):
                    limit = timeout(job) if timeout else None
                    running[pool.schedule(function, args=[job], timeout=limit)] = job
                if not running:
                    return  # not by stop: a process that is just starting would print a traceback
                done = wait(running, 1, FIRST_COMPLETED).done
                if not done and not pool.active:  # a pool that breaks may forget a job
                    raise RuntimeError(BROKEN)
                for future in done:
                    job = running.pop(future)
                    yield job, _outcome(future, timeout(job) if timeout else None)
        except BaseException:
            pool.stop()
            raise


def _outcome(future: Future, timeout: float | None) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RuntimeError(BROKEN) from None
    except TimeoutError:
        return Lost(f"time-out: not done within {timeout:g} s")
    except ProcessExpired as error:
        return Lost(f"crash: the process ended with exit code {error.exitcode}")

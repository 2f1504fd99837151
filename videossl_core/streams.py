"""The random streams of a run: each purpose draws from a generator of its own, so none disturbs another.

A generator is seeded with ``[seed, stream, ...]``. Every published draw depends on these numbers.
"""

from enum import IntEnum


class Stream(IntEnum):
    UNIFORM = 1
    STRATIFIED = 2
    ORDER = 3
    CLIPS = 4

"""The random streams of a run: each purpose draws from a generator of its own, so none disturbs another.

A generator is seeded with ``[seed, stream, ...]``. Every published draw depends on these numbers.
"""

from enum import IntEnum


class Stream(IntEnum):
    UNIFORM = 1  # which training videos have a label, whatever their class
    STRATIFIED = 2  # which videos of each class have one
    ORDER = 3  # the order of the videos in an epoch
    CLIPS = 4  # everything random in a step's batch

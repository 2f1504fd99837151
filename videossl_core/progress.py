"""Long work says how far it is; whoever wants to see it sets ``display``. By default nothing is shown."""

from collections.abc import Callable, Iterable

display: Callable[[Iterable, int, str], Iterable] = lambda items, total, label: items  # noqa: E731
"""Wraps a loop over ``total`` items, labelled with what is done; ``videossl_lab.live`` has one."""


def track(items: Iterable, total: int, label: str) -> Iterable:
    """The same items, shown while they are worked through."""
    return display(items, total, label)

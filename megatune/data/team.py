"""Processes that prepare data together, and the one that does so alone."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Team(Protocol):
    """Processes that take the same steps. Each method is collective: every process calls it, or all hang.

    An error in one of them is an error in all: a message of ours with its exit code.
    """

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def each(self, act: Callable[[], T]) -> T:
        """Every process acts; gives each its own result."""

    def first(self, act: Callable[[], T]) -> T:
        """The first process acts; gives all its result."""

    def gather(self, act: Callable[[], T]) -> list[T]:
        """Every process acts; gives all the results, in the order of the processes."""


class Alone:
    """A team of one."""

    rank, size = 0, 1

    def each(self, act: Callable[[], T]) -> T:
        """Act."""
        return act()

    def first(self, act: Callable[[], T]) -> T:
        """Act."""
        return act()

    def gather(self, act: Callable[[], T]) -> list[T]:
        """Act."""
        return [act()]


ALONE = Alone()

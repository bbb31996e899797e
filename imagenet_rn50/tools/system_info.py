"""Read what this machine has: cores, memory, limits, volumes, versions. Nothing is measured."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PAGE_CACHE_FRACTION = 0.8  # of the memory: what the page cache may take

_PACKAGES = ("torch", "torchvision", "accelerate", "transformers", "simplejpeg")
_SHARED_MEMORY = Path("/dev/shm")
_MEMORY = Path("/proc/meminfo")  # Linux only
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """A machine as a bug report describes it, without host name, user or path.

    Attributes:
        cores: CPUs that this process may use.
        memory_bytes: Physical memory.
        shared_memory_bytes: Free space in /dev/shm, or None if there is no such folder.
        open_files: Limit of open files of a process; -1 is unlimited.
        driver: Version of NVIDIA's kernel driver, or None if there is none.
        versions: Versions of Python and of the packages that speed depends on.
    """

    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None
    open_files: int
    driver: str | None
    versions: dict[str, str]


def read_machine() -> Machine:
    """Return a description of this machine."""
    has_shared_memory = _SHARED_MEMORY.is_dir()
    versions = {"python": platform.python_version()}
    return Machine(
        cores=num_cores(),
        memory_bytes=memory_bytes(),
        shared_memory_bytes=shutil.disk_usage(_SHARED_MEMORY).free if has_shared_memory else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        driver=_driver_version(_DRIVER),
        versions=versions | {name: version(name) for name in _PACKAGES},
    )


def most_workers(cores: int, num_ranks: int) -> int:
    """Return how many loader workers have a core of their own beside one core for each rank."""
    return max(cores - num_ranks, 1)


def num_cores() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(memory: Path = _MEMORY, *, system: Path = Path("/")) -> int:
    """Return the bytes that this process can get at once: free, or caches that can be dropped.

    Args:
        memory: Linux's table of them; if it is missing, all memory counts as free.
        system: The folder that contains /proc and /sys, with the limits of containers (cgroups).
    """
    available = memory_bytes()
    for line in memory.read_text(encoding="utf-8").splitlines() if memory.is_file() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            available = int(value.split()[0]) * 2**10  # "kB" there are KiB
    return max(min([available, *_available_in_cgroups(system)]), 0)


def _available_in_cgroups(system: Path) -> Iterator[int]:
    """Yield the bytes that are left in each memory cgroup of this process that has a limit."""
    path = system / "proc/self/cgroup"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current")
            cache = "inactive_file"
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cache = "total_inactive_file"
        else:
            continue
        own = root / group.strip("/")  # in a container, maybe a path of the host that is not here
        for folder in {root, *(parent for parent in (own, *own.parents) if root in parent.parents)}:
            limit, used = (_first_word(folder / name) for name in names)
            if limit.isdigit() and used.isdigit():
                rows = _read_if_file(folder / "memory.stat").splitlines()
                reclaimable = sum(
                    int(row.split()[1]) for row in rows if row.startswith(f"{cache} ")
                )
                yield int(limit) - int(used) + reclaimable


def _read_if_file(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _first_word(path: Path) -> str:
    return _read_if_file(path).partition("\n")[0]


def memory_bytes() -> int:
    """Return the physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def volume_of(folder: Path, *, system: Path = Path("/")) -> str:
    """Return the filesystem, device and, if it has one, device model that hold a folder.

    On EC2 the model tells an EBS volume from the instance's own NVMe.

    Args:
        folder: The folder.
        system: The folder that contains /proc and /sys.
    """
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    kind, source = "unknown filesystem", ""
    mounts = system / "proc/self/mountinfo"  # Linux only
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.is_file() else ():
        fields, _, tail = line.partition(" - ")
        if fields.split()[2] == number:
            kind, source = tail.split()[:2]
            break
    words = [kind, source if source.startswith("/dev/") else ""]
    block = system / "sys/dev/block" / number
    for path in (block / "device/model", block / "../device/model"):  # a disk; a partition of one
        if path.is_file():
            words.append(f"({path.read_text(encoding='utf-8').strip()})")
            break
    return " ".join(word for word in words if word)


def _driver_version(path: Path) -> str | None:
    """Return the version in NVIDIA's /proc/driver/nvidia/version."""
    if not path.is_file():
        return None
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)

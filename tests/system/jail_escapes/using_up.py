"""Using the machine up. The limits of the battery are half of what is tried."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import threading
import time
from pathlib import Path

from .stage import LIMITS, SCRATCH, Stage, attempt, syscall


@attempt()
def use_up_memory(stage: Stage) -> bool:
    """Take twice the memory."""
    map_noreserve = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve
    mmap.mmap(-1, 2 * LIMITS["address_space"], flags=flags).close()
    return True


@attempt()
def use_up_threads(stage: Stage) -> bool:
    """Start twice the threads."""
    over = threading.Event()
    try:
        for _ in range(2 * LIMITS["processes"]):
            threading.Thread(target=over.wait).start()
    finally:
        over.set()
    return True


@attempt()
def use_up_descriptors(stage: Stage) -> bool:
    """Open twice the files."""
    for _ in range(2 * LIMITS["open_files"]):
        os.dup(0)
    return True


@attempt()
def use_up_disk(stage: Stage) -> bool:
    """Make a file of twice the size."""
    file = Path(stage.state, "big")
    file.touch()
    os.truncate(file, 2 * LIMITS["file_size"])
    return True


@attempt()
def use_up_scratch(stage: Stage) -> bool:
    """Fill the memory behind /tmp, in files that are each small enough."""
    files = [Path(f"/tmp/llmos-escape-{os.getpid()}-{part}") for part in range(4)]
    try:
        for file in files:
            file.write_bytes(bytes(SCRATCH // 2))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return True


@attempt()
def use_up_processor(stage: Stage) -> bool:
    """Compute for longer than allowed."""
    while time.process_time() < 1.5 * LIMITS["cpu_seconds"]:
        pass
    return True


@attempt(programs=True)
def use_up_processes(stage: Stage) -> bool:
    """Start twice the processes, from processes: a fork bomb of two generations."""
    read, write = os.pipe()
    children = []
    try:
        for _ in range(2 * LIMITS["processes"]):
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.read(read, 1)  # until the parent ends
                os._exit(0)
            children.append(pid)
    finally:
        os.close(write)
        os.close(read)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return True


@attempt()
def use_up_inodes(stage: Stage) -> bool:
    """Make twice as many empty files as there would be pages in scratch: they cost memory that no size counts."""
    folder = Path(f"/tmp/llmos-escape-{os.getpid()}")
    folder.mkdir()
    wanted = 2 * SCRATCH // 4096
    try:
        for each in range(wanted):
            os.close(os.open(folder / str(each), os.O_CREAT | os.O_WRONLY))
    finally:
        shutil.rmtree(folder)
    return True


@attempt()
def use_up_memory_without_a_name(stage: Stage) -> bool:
    """Fill memory that is in no directory and no address space, in files that are each small enough."""
    for _ in range(4):
        memory = syscall("memfd_create", b"bomb", 0)
        os.write(memory, bytes(SCRATCH // 2))
    return True

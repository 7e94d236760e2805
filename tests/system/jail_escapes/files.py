"""Files that were not granted, and files that were granted for reading only."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

from .stage import AT_FDCWD, LIBC, Stage, attempt, holds_token, passes, syscall


@attempt()
def read_by_path(stage: Stage) -> bool:
    """Read a file that was not granted."""
    return holds_token(stage.secret, stage)


@attempt()
def read_by_symlink(stage: Stage) -> bool:
    """Read it through a link in the own directory."""
    link = Path(stage.state, "link")
    link.unlink(missing_ok=True)
    link.symlink_to(stage.secret)
    return holds_token(link, stage)


@attempt()
def read_by_hardlink(stage: Stage) -> bool:
    """Read it through a hard link in the own directory."""
    link = Path(stage.state, "hard")
    link.unlink(missing_ok=True)
    link.hardlink_to(stage.secret)
    return holds_token(link, stage)


@attempt()
def read_by_dotdot(stage: Stage) -> bool:
    """Read it by climbing out of the own directory."""
    return holds_token(Path(stage.state, "..", os.path.relpath(stage.secret, Path(stage.state).parent)), stage)


@attempt()
def read_by_proc_root(stage: Stage) -> bool:
    """Read it through the root directory of another process."""
    return holds_token(f"/proc/{stage.victim}/root{stage.secret}", stage)


@attempt()
def read_by_inherited_descriptor(stage: Stage) -> bool:
    """Read it through a descriptor that was left open."""
    for fd in range(3, 256):
        try:
            if stage.token.encode() in os.pread(fd, 4096, 0):
                return True
        except OSError:
            continue
    return False


@attempt()
def see_that_it_exists(stage: Stage) -> bool:
    """Learn a name that was not granted."""
    return Path(stage.secret).exists()


@attempt()
def list_the_users(stage: Stage) -> bool:
    """Read the account database."""
    return b"root" in Path("/etc/passwd").read_bytes()


@attempt()
def write_to_read_grant(stage: Stage) -> bool:
    """Create a file where only reading was granted."""
    planted = Path(stage.granted, "planted")
    planted.touch()
    planted.unlink()
    return True


@attempt()
def truncate_in_read_grant(stage: Stage) -> bool:
    """Change a file where only reading was granted."""
    note = Path(stage.granted, "note")
    os.truncate(note, note.stat().st_size)
    return True


@attempt()
def rename_into_read_grant(stage: Stage) -> bool:
    """Move an own file to where only reading was granted."""
    own = Path(stage.state, "moved")
    own.touch()
    own.rename(Path(stage.granted, "moved")).unlink()
    return True


@attempt()
def change_mode_in_read_grant(stage: Stage) -> bool:
    """Change the mode of a file where only reading was granted."""
    note = Path(stage.granted, "note")
    note.chmod(note.stat().st_mode)
    return True


@attempt(depends=True)
def plant_startup_code(stage: Stage) -> bool:
    """Put a .pth file where every later Python process would run it."""
    planted = Path(next(place for place in sys.path if place.endswith("site-packages")), "planted.pth")
    planted.touch()
    planted.unlink()
    return True


@attempt(depends=True)
def change_the_packages(stage: Stage) -> bool:
    """Open the OS's own code for writing."""
    import llmos.drivers as package

    with Path(str(package.__file__)).open("r+b"):
        return True


@attempt()
def import_the_kernel(stage: Stage) -> bool:
    """Load the kernel's code."""
    import llmos.kernel.jail as package

    return bool(package.__file__)


@attempt(root=True, depends=True)
def make_a_device(stage: Stage) -> bool:
    """Make a device node for the machine's memory."""
    node = Path(stage.state, "mem")
    node.unlink(missing_ok=True)
    os.mknod(node, 0o20600, os.makedev(1, 1))
    return True


@attempt(root=True, depends=True)
def change_the_system(stage: Stage) -> bool:
    """Open a setting of Linux for writing."""
    with Path("/proc/sys/kernel/printk").open("r+b"):
        return True


@attempt(root=True, depends=True)
def open_a_host_device(stage: Stage) -> bool:
    """Open the kernel's log."""
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    return True


@attempt()
def read_by_rename_race(stage: Stage) -> bool:
    """Read it through a directory of the own that becomes a link in the moment between a check and an open."""
    real, link, raced = (Path(stage.state, name) for name in ("real", "elsewhere", "raced"))
    real.mkdir(exist_ok=True)
    (real / "secret").write_text("bait")
    link.unlink(missing_ok=True)
    link.symlink_to(Path(stage.secret).parent)
    raced.unlink(missing_ok=True)
    raced.symlink_to(real)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for target in (link, real):
                spare = Path(stage.state, "spare")
                spare.symlink_to(target)
                spare.rename(raced)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(2000):
            with suppress(OSError):
                if holds_token(raced / "secret", stage):
                    return True
    finally:
        stop.set()
        thread.join()
    return False


@attempt()
def read_by_proc_cwd(stage: Stage) -> bool:
    """Read it through another process's working directory."""
    return holds_token(f"/proc/{stage.victim}/cwd/{os.path.relpath(stage.secret, '/')}", stage)


@attempt()
def read_by_proc_fd(stage: Stage) -> bool:
    """Read it through the open files of the process that started us."""
    for fd in range(3, 64):
        with suppress(OSError):
            if holds_token(f"/proc/{os.getppid()}/fd/{fd}", stage):
                return True
    return False


@attempt()
def read_by_inherited_directory(stage: Stage) -> bool:
    """Read it by a path from a directory that was left open."""
    for fd in range(3, 256):
        with suppress(OSError):
            found = os.open(Path(stage.secret).name, os.O_RDONLY, dir_fd=fd)
            if stage.token.encode() in os.read(found, 4096):
                return True
    return False


@attempt(depends=True)
def name_by_handle(stage: Stage) -> bool:
    """Get the number under which the file system knows it, which no path leads to any more."""
    handle, mount = ctypes.create_string_buffer(struct.pack("@Ii", 128, 0) + bytes(128)), ctypes.create_string_buffer(4)
    return syscall("name_to_handle_at", AT_FDCWD, stage.secret.encode(), handle, mount, 0) == 0


@attempt(root=True, depends=True)
def open_by_handle(stage: Stage) -> bool:
    """Open files by such a number, as the first escape from Docker did; ESTALE means that only the number was wrong."""
    handle = ctypes.create_string_buffer(struct.pack("@Ii", 8, 1) + bytes(8))
    base = os.open(stage.state, os.O_RDONLY)
    return passes("open_by_handle_at", base, handle, 0, but_for=errno.ESTALE)


@attempt(root=True)
def change_root(stage: Stage) -> bool:
    """Choose another root directory, the classic way out of the other one."""
    os.chroot(stage.state)
    return True


@attempt()
def enter_directory(stage: Stage) -> bool:
    """Work in a directory that was not granted."""
    os.chdir(Path(stage.secret).parent)
    return Path("secret").exists()


@attempt()
def watch_the_secret(stage: Stage) -> bool:
    """Be told when somebody else reads it."""
    inotify = LIBC.inotify_init()
    return int(LIBC.inotify_add_watch(inotify, stage.secret.encode(), 1)) >= 0


@attempt(depends=True)
def watch_everything(stage: Stage) -> bool:
    """Be told of what is opened on a whole file system."""
    return syscall("fanotify_init", 0x200, 0) >= 0  # FAN_REPORT_FID, which needs no privilege


@attempt()
def open_read_grant_for_writing(stage: Stage) -> bool:
    """Open a file for writing where only reading was granted."""
    with Path(stage.granted, "note").open("r+b"):
        return True


@attempt()
def link_in_read_grant(stage: Stage) -> bool:
    """Give a file a second name where only reading was granted."""
    second = Path(stage.granted, f"second-{os.getpid()}")
    second.hardlink_to(Path(stage.granted, "note"))
    second.unlink()
    return True


@attempt()
def delete_in_read_grant(stage: Stage) -> bool:
    """Remove a directory where only reading was granted."""
    empty = Path(stage.granted, "empty")
    empty.rmdir()
    empty.mkdir()
    return True


@attempt(depends=True)
def exchange_with_read_grant(stage: Stage) -> bool:
    """Swap an own file with one that only reading was granted of."""
    own, note = Path(stage.state, "own"), Path(stage.granted, "note")
    own.write_bytes(note.read_bytes())
    flag = 2  # RENAME_EXCHANGE
    return syscall("renameat2", AT_FDCWD, bytes(own), AT_FDCWD, bytes(note), flag) == 0


@attempt()
def change_owner_in_read_grant(stage: Stage) -> bool:
    """Change the owner of a file where only reading was granted."""
    note = Path(stage.granted, "note")
    os.chown(note, -1, note.stat().st_gid)
    return True


@attempt()
def change_time_in_read_grant(stage: Stage) -> bool:
    """Change the times of a file where only reading was granted."""
    note = Path(stage.granted, "note")
    found = note.stat()
    os.utime(note, ns=(found.st_atime_ns, found.st_mtime_ns))
    return True


@attempt(depends=True)
def set_attribute_in_read_grant(stage: Stage) -> bool:
    """Leave an extended attribute on a file where only reading was granted."""
    os.setxattr(Path(stage.granted, "note"), "user.llmos", b"x")
    return True


@attempt(depends=True)
def plant_in_the_library(stage: Stage) -> bool:
    """Put a module beside Python's own, where a process outside would import it."""
    planted = Path(str(os.__file__)).with_name("llmos_planted.py")
    planted.touch()
    planted.unlink()
    return True


@attempt(depends=True)
def plant_bytecode(stage: Stage) -> bool:
    """Put compiled code where Python looks before it reads a module's source."""
    planted = Path(str(os.__file__)).parent / "__pycache__" / "llmos_planted.pyc"
    planted.touch()
    planted.unlink()
    return True


@attempt()
def plant_beside_the_program(stage: Stage) -> bool:
    """Change the package that we were started from."""
    planted = Path(__file__).with_name(f"planted-{os.getpid()}.py")
    planted.touch()
    planted.unlink()
    return True


@attempt(root=True, depends=True)
def plant_in_dev(stage: Stage) -> bool:
    """Put a file among the devices."""
    planted = Path(f"/dev/llmos-{os.getpid()}")
    planted.touch()
    planted.unlink()
    return True


@attempt(root=True, depends=True)
def open_a_driver_of_linux(stage: Stage) -> bool:
    """Open one of the devices that lead to drivers of Linux, or to the machine's memory and disks."""
    for name in ("mem", "kvm", "fuse", "loop-control", "net/tun", "vhost-vsock", "snapshot", "loop0", "tty0", "vcs"):
        with suppress(OSError):
            os.close(os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK))
            return True
    return False

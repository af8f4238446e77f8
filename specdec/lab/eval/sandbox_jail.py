"""Confining and limiting the process that calls: namespaces of Linux, and limits of resources.

Confined means: no network, no other process in sight, and a file system that holds the program's own folder, and
Python's library to read, without the packages that are installed into it. Source: namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

NOBODY = 65534
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _NOEXEC, _RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 2, 4, 8, 1, 32, 4096, 16384, 1 << 18
_DETACH, _PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 2, 1, 4, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def confine(folder: str) -> None:
    """Enter namespaces of this process's own, with `folder` as /work in an otherwise empty, read-only file system.

    Raises:
        OSError: the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind, data)]
        check(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))

    def bind(source: str, target: str, flags: int) -> None:
        mount(source, target, None, _BIND | _REC)
        found = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC)  # those of the original cannot be taken off
        mount(None, target, None, _REMOUNT | _BIND | _NOSUID | _NODEV | found | flags)

    user, group, apart = os.getuid(), os.getgid(), _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    check(libc.unshare(apart if user == 0 else apart | _NEWUSER))
    if user:
        maps = {"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}
        for name, text in maps.items():
            Path("/proc/self", name).write_text(text)
    mount(None, "/", None, _REC | _PRIVATE)
    root, own = f"{folder}/root", f"{folder}/work"
    mount("none", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    libraries = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    for place in ("/work", "/old", *sorted(libraries)):
        Path(root + place).mkdir(parents=True, exist_ok=True)
    bind(own, f"{root}/work", 0)
    for place in libraries:
        bind(place, root + place, _RDONLY)
        for packages in ("site-packages", "dist-packages"):  # where the tests themselves may be installed
            if Path(hidden := f"{root}{place}/{packages}").is_dir():
                mount("none", hidden, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k,mode=0755")
    os.chdir(root)
    check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"old"))
    os.chdir("/")
    check(libc.umount2(b"/old", _DETACH))
    Path("/old").rmdir()
    mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/work")
    # The namespace of processes begins with the next one. The first in it is not ended by signals: the program is the
    # second, and the parent that waits ends as it did.
    for _ in range(2):
        if (child := os.fork()) != 0:
            _end_as(child)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)


def _end_as(child: int) -> NoReturn:
    """Wait for a child and end with its exit code, which is 128 and the number of the signal that ended it, if any."""
    _, status = os.waitpid(child, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def give_up_capabilities() -> None:
    """Let go of the rights over its own namespaces, with which the program could undo what was done."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_up_root() -> None:
    """As root, become the user `nobody`: limits on processes do not hold for root, and files would be open to it."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def close_memory() -> None:
    """On Linux, keep other processes of this user from reading or changing this one's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DUMPABLE, 0, 0, 0, 0)


def limit(limits: dict[str, int]) -> None:
    """Set the limits of this process and its children."""
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        # What the user runs already counts, so none means that no process and no thread can be started.
        resource.RLIMIT_NPROC: limits["processes"],
    }
    for kind, value in wanted.items():
        # Past the hard limit of processor time the kernel kills; at the soft one the signal says why.
        _lower(kind, value, spare=int(kind == resource.RLIMIT_CPU))
    try:
        _lower(resource.RLIMIT_AS, limits["memory_bytes"])
    except (OSError, ValueError):
        if sys.platform != "darwin":  # whose kernel knows the limit and refuses to set it
            raise


def _lower(kind: int, value: int, spare: int = 0) -> None:
    """Set a limit for good; the hard one can only sink."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)))

"""What the operating system offers against a hostile program, through the C library: no privilege, nothing to install.

    namespaces   own users, processes, network, mounts, IPC; a root file system with Python's library, read-only, and
                 nothing else
    landlock     without namespaces: which paths may be read and written (Linux 5.13 and later)
    seccomp      which system calls may be made (list in `syscalls`)
    rlimits      memory, CPU, file size, open files

Runs inside the sandbox's own process, so it imports the standard library only. Failures are OSError with the call's
name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig

import syscalls

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH = 8, 1 << 2
NOBODY = 65534
SITE = ("site-packages", "dist-packages")

_MACHINES = {"x86_64": (0, 0xC000003E, 155), "aarch64": (1, 0xC00000B7, 41)}  # column, audit arch, pivot_root
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, *arguments: object, what: str) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, value: int = 0) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


# Namespaces --------------------------------------------------------------------------------------------------------


def enter_namespaces() -> None:
    """New user, mount, network, IPC, host-name namespaces for this process, a process namespace for its children."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _check(_libc.unshare(flags), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    result = _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {target}")


def build_root(root: str, scratch: str) -> None:
    """Make `root` (an empty directory) this process's file system: Python's library read-only, /dev/null, `scratch`."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in library_paths():
        _bind(path, root + path)
    for base, names, _ in os.walk(root + sysconfig.get_path("stdlib")):
        for name in [n for n in names if n in SITE]:
            mount("tmpfs", os.path.join(base, name), "tmpfs", MS_RDONLY, "size=4k")
        break
    for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        _bind(path, root + path)
    os.makedirs(root + scratch)
    os.makedirs(root + "/.old")
    os.chdir(root)
    _syscall(_machine()[2], b".", b".old", what="pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/.old", MNT_DETACH), "umount /.old")
    os.rmdir("/.old")
    _set_readonly("/", recursive=False)


def fresh_scratch(scratch: str, size: int, files: int, used: bool) -> None:
    """An empty file system of `size` bytes at `scratch`; the one before, with all it held, is gone."""
    if used:
        _check(_libc.umount2(scratch.encode(), MNT_DETACH), f"umount {scratch}")
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={size},nr_inodes={files},mode=777")


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, None, MS_BIND | MS_REC)
    if not source.startswith("/dev/"):
        _set_readonly(target, recursive=True)


def _set_readonly(path: str, recursive: bool) -> None:
    """struct mount_attr {attr_set, attr_clr, propagation, userns_fd}; a recursive flag is 0x8000."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV if recursive else MS_RDONLY, 0, 0, 0)
    flags = 0x8000 if recursive else 0
    _syscall(SYS_MOUNT_SETATTR, -100, path.encode(), flags, attributes, len(attributes), what="mount_setattr")


def library_paths() -> list[str]:
    """The standard library's directory and the directories of the shared objects already loaded."""
    stdlib = sysconfig.get_path("stdlib")
    found = [stdlib]
    with open("/proc/self/maps") as file:
        objects = {line.split()[-1] for line in file if ".so" in line}
    for directory in sorted({os.path.dirname(path) for path in objects if path.startswith("/")}):
        if not (directory + "/").startswith(stdlib + "/") and not (stdlib + "/").startswith(directory + "/"):
            found.append(directory)
    return found


def drop_capabilities(keep: int = 0) -> None:
    """No capability is left, permitted, effective or inheritable, but for the bits of `keep`."""
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, struct.pack("IIIIII", keep, keep, 0, 0, 0, 0)), "capset")


def become_nobody(read_all: bool) -> None:
    """From root to nobody. `read_all` keeps the right to read any file, for when Landlock says which ones."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_capabilities(CAP_DAC_READ_SEARCH if read_all else 0)


# Landlock ----------------------------------------------------------------------------------------------------------


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 without."""
    return max(_libc.syscall(ctypes.c_long(SYS_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(1)), 0)


def restrict_paths(scratch: str) -> None:
    """From here on: read the standard library (without installed packages) and /dev/null, write in `scratch`."""
    version = landlock_version()
    handled = (1 << 13) - 1
    handled |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    attribute = struct.pack("Q", handled)
    ruleset = _syscall(SYS_LANDLOCK_CREATE, attribute, ctypes.c_size_t(8), ctypes.c_uint32(0), what="landlock_create")
    read_file, read_dir = 1 << 2, 1 << 3
    stdlib = sysconfig.get_path("stdlib")
    readable = [os.path.join(stdlib, name) for name in os.listdir(stdlib) if name not in SITE]
    readable += [path for path in library_paths() if path != stdlib] + ["/dev/null", "/dev/urandom", "/dev/random"]
    for path in [*readable, scratch]:
        access = handled if path == scratch else read_file | (read_dir if os.path.isdir(path) else 0)
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, parent)
        _syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, ctypes.c_uint32(0), what=f"landlock_add {path}")
        os.close(parent)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _syscall(SYS_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0), what="landlock_restrict")
    os.close(ruleset)


# Seccomp -----------------------------------------------------------------------------------------------------------

_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW = 0x7FFF0000
_IOCTLS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # terminal?, window size, bytes waiting, blocking, close-on-exec
_FCNTL_DENIED = (8, 10, 15, 1024, 1026)  # owner and signal of a descriptor, leases, directory notification


def _machine() -> tuple[int, int, int]:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no system call table for {sys.platform} on {platform.machine()}")
    return _MACHINES[platform.machine()]


def _deny(code: int) -> int:
    return 0x00050000 | code


def seccomp_program() -> bytes:
    """The filter in the kernel's bytecode: allowed calls first, then those that depend on an argument, then denial."""
    column, arch, _ = _machine()
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _deny(errno.EPERM)), (_LOAD, 0, 0, 0),
    ]  # fmt: skip
    for numbers in syscalls.ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]

    def checked(name: str, argument: int, test: int, values: tuple[int, ...], hit: int, miss: int) -> None:
        number = syscalls.CHECKED[name][column]
        assert number is not None, name
        body = [(_LOAD, 0, 0, 16 + 8 * argument)]
        for value in values:
            body += [(test, 0, 1, value), (_RETURN, 0, 0, hit)]
        body.append((_RETURN, 0, 0, miss))
        code.extend([(_EQUAL, 0, len(body), number), *body])

    denied = _deny(errno.EPERM)
    checked("clone", 0, _SET, (0x10000,), _ALLOW, denied)  # threads only
    checked("clone3", 0, _SET, (), _ALLOW, _deny(errno.ENOSYS))  # the C library then falls back to clone
    checked("ioctl", 1, _EQUAL, _IOCTLS, _ALLOW, _deny(errno.ENOTTY))
    checked("fcntl", 1, _EQUAL, _FCNTL_DENIED, denied, _ALLOW)
    checked("prctl", 0, _EQUAL, (15, 16), _ALLOW, denied)  # a thread's name
    checked("prlimit64", 0, _EQUAL, (0,), _ALLOW, denied)  # its own
    code.append((_RETURN, 0, 0, denied))
    return b"".join(struct.pack("HBBI", *line) for line in code)


def install_seccomp(program: bytes) -> None:
    """From here on, in this process and all it starts, what `program` denies fails."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), header, 0, 0), "seccomp")


# Limits ------------------------------------------------------------------------------------------------------------


def set_limits(memory: int, cpu_seconds: int, file_size: int, threads: int | None) -> None:
    """Limits of this process, hard: bytes of address space, seconds, bytes a file; no core dump; `threads` in all."""
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if threads is not None:
        limits[resource.RLIMIT_NPROC] = threads
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))

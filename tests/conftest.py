"""What holds for every test: no network but loopback, which the kernel sees to, for child processes too.

Fixtures that tests of several rooms ask for come from the kit, and each test finds them here.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.kit")
from tests.kit.terminal import program as program  # noqa: E402 - after its asserts are to be rewritten
from tests.kit.tls import tls as tls  # noqa: E402

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _leave_the_network() -> bool:
    """Move this process into a network namespace with nothing but loopback; False where the kernel forbids it."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return False
    if libc.unshare(_CLONE_NEWNET) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sh", b"lo", 0)
        (flags,) = struct.unpack("16xh", fcntl.ioctl(s, _SIOCGIFFLAGS, request)[:18])
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))
    return True


# No test asserts a time, and this machine may be busy.
settings.register_profile("commonweal", deadline=None)
settings.load_profile("commonweal")

NETWORK_IS_OFF = _leave_the_network()


def pytest_report_header() -> str:
    return f"network: {'loopback only' if NETWORK_IS_OFF else 'NOT cut off: this kernel does not let us'}"


@pytest.fixture(scope="session", autouse=True)
def network_is_off() -> None:
    """Fail early if the claim of this module does not hold."""
    if NETWORK_IS_OFF:
        with socket.socket() as s, pytest.raises(OSError, match="unreachable") as e:
            s.connect(("192.0.2.1", 9))  # TEST-NET-1: never anybody's
        assert e.value.errno == errno.ENETUNREACH

"""By which network interface another host is reached."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from contextlib import suppress

# Linux: ask a socket for the IPv4 address of an interface; see netdevice(7).
_SIOCGIFADDR = 0x8915


def interfaces() -> list[str]:
    """The names of this host's network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def interface_towards(host: str | None) -> str:
    """The name of the interface by which packets to `host` leave; empty where that cannot be told.

    Args:
        host: name or IPv4 address; None tells nothing.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if host is None:
            return ""
        asking.connect((host, 9))  # no packet is sent
        own = asking.getsockname()[0]
        return next((name for name in interfaces() if _address(asking, name) == own), "")
    return ""


def _address(asking: socket.socket, name: str) -> str | None:
    """The IPv4 address of an interface; None where it has none."""
    request = array.array("B", struct.pack("256s", name.encode()[:15]))
    try:
        fcntl.ioctl(asking, _SIOCGIFADDR, request)
    except OSError:
        return None
    return socket.inet_ntoa(request.tobytes()[20:24])

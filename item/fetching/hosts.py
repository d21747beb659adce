"""Which hosts may be asked, and at which addresses.

A name that is allowed may still lead to an address that nobody meant: that of this machine, of its network, or of a
cloud's metadata service (server-side request forgery). So both are checked: the name as the URL gives it, and every
address that it stands for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from item.errors import ConfigError

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_SPECIAL = (  # of IANA's special-purpose registries, what `is_global` of some Pythons takes for global
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv6Network("2001::/23"),
    IPv6Network("3fff::/20"),
)
_INTRANET: tuple[IPv4Network | IPv6Network, ...] = (  # RFC 1918, 6598, 4193, and this machine
    *map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8")),
    *map(IPv6Network, ("fc00::/7", "::1/128")),
)
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, for one machine.

    Loopback, private, link-local, multicast, reserved and unspecified ones are not. An IPv6 address that carries an
    IPv4 address (mapped, NAT64, 6to4) is none either where that one is not.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) % 2**32))
        if address not in _GLOBAL_UNICAST or (address.sixtofour is not None and not is_public(address.sixtofour)):
            return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
    return address.is_global and not special


def is_public_or_intranet(address: Address) -> bool:
    """Whether an address is public, private or of this machine.

    Link-local ones, where clouds answer with a machine's credentials, are still none, nor is anything else.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public_or_intranet(address.ipv4_mapped)
    return is_public(address) or any(address in network for network in _INTRANET)


def normal_host(host: str) -> str:
    """A host's name in lower case, in ASCII (IDNA), without the dot of the root. Raises ValueError."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host.encode("idna").decode("ascii").lower().removesuffix(".")


@dataclass(frozen=True)
class AllowedHosts:
    """Names of hosts, or `*.shop.example` for all below a domain but not the domain itself. `host in hosts` asks.

    Raises:
        ConfigError: a pattern that is neither.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        normal = []
        for pattern in self.patterns:
            below, rest = ("*.", pattern[2:]) if pattern.startswith("*.") else ("", pattern)
            try:
                host = below + normal_host(rest)
            except ValueError:
                host = ""
            if not (_PATTERN.fullmatch(host) or (not below and _is_address(host))):
                raise ConfigError(f"allow_host: {pattern!r} is neither a host, shop.example, nor *.shop.example")
            normal.append(host)
        object.__setattr__(self, "patterns", tuple(sorted(set(normal))))

    def __contains__(self, host: str) -> bool:
        if host in self.patterns:
            return True
        labels = host.split(".")
        return not _is_address(host) and any(
            "*." + ".".join(labels[start:]) in self.patterns for start in range(1, len(labels))
        )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

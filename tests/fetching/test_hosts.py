"""Which addresses are public, against IANA's registries and `ipaddress`; which hosts an allow-list takes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from item.errors import ConfigError
from item.fetching.hosts import AllowedHosts, is_public, is_public_or_intranet, normal_host

# IANA's special-purpose address registries (RFC 6890 and its updates), multicast (RFC 5771, RFC 4291), class E.
SPECIAL_V4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
)
SPECIAL_V6 = (
    *("::/128", "::1/128", "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20"),
    *("5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)


def carriers(inner: IPv4Address) -> list[IPv6Address]:
    """IPv6 addresses that stand for an IPv4 address: mapped, NAT64, 6to4."""
    number = int(inner)
    return [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x0064FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | 1),
    ]


def test_addresses_that_are_known() -> None:
    for text in ("8.8.8.8", "93.184.215.14", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(ip_address(text)), text
    for text in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1"):
        assert not is_public(ip_address(text)), text


@pytest.mark.parametrize("text", [*SPECIAL_V4, *SPECIAL_V6])
@given(data=st.data())
def test_special_addresses_are_not_public(text: str, data: st.DataObject) -> None:
    network = ip_network(text)
    offset = data.draw(st.integers(0, network.num_addresses - 1))
    for address in (network[0], network[-1], network[offset]):
        assert not is_public(address)
        if isinstance(address, IPv4Address):
            assert not any(map(is_public, carriers(address)))


@given(st.ip_addresses(v=4))
def test_other_ipv4_addresses_are_public(address: IPv4Address) -> None:
    special = any(address in ip_network(text) for text in SPECIAL_V4)
    assert is_public(address) is not special
    assert [is_public(carrier) for carrier in carriers(address)] == [not special] * 3


@given(st.ip_addresses(v=6))
def test_a_public_ipv6_address_is_global(address: IPv6Address) -> None:
    if is_public(address) and address.ipv4_mapped is None:
        assert address.is_global
        assert not address.is_multicast
        assert not any(address in ip_network(text) for text in SPECIAL_V6)


@given(st.ip_addresses())
def test_an_intranet_adds_private_addresses_and_this_machine(address: IPv4Address | IPv6Address) -> None:
    if is_public_or_intranet(address) and not is_public(address):
        assert not address.is_link_local
        assert not address.is_multicast
        assert not address.is_unspecified


def test_addresses_of_an_intranet() -> None:
    for text in ("127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "fd00::1", "::ffff:10.0.0.1", "8.8.8.8"):
        assert is_public_or_intranet(ip_address(text)), text
    for text in (
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
    ):
        assert not is_public_or_intranet(ip_address(text)), text


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=2, max_size=4).map(".".join).filter(lambda host: not host.split(".")[-1].isdigit())


@given(allowed=HOST, others=st.lists(HOST, max_size=3), below=LABEL)
def test_a_host_is_itself_and_a_wildcard_what_is_below(allowed: str, others: list[str], below: str) -> None:
    exactly, wildcard = AllowedHosts((allowed,)), AllowedHosts((f"*.{allowed}",))
    assert allowed in exactly
    assert allowed not in wildcard
    assert f"{below}.{allowed}" in wildcard
    assert f"{below}.{below}.{allowed}" in wildcard
    assert f"{below}.{allowed}" not in exactly
    for wrong in (f"{below}{allowed}", f"{allowed}.{below}", f"{below}.{allowed}.{below}"):
        assert wrong not in exactly
        assert wrong not in wildcard or wrong.endswith(f".{allowed}")
    for other in others:
        assert (other in exactly) is (other == allowed)
        assert (other in wildcard) is other.endswith(f".{allowed}")
    both = AllowedHosts((allowed, f"*.{allowed}", *others))
    assert all(host in both for host in (allowed, f"{below}.{allowed}", *others))


@given(HOST)
def test_case_and_the_dot_of_the_root_do_not_matter(host: str) -> None:
    assert normal_host(host.upper() + ".") == normal_host(host) == host
    assert AllowedHosts((host.upper() + ".",)) == AllowedHosts((host,))


def test_names_that_are_not_ascii() -> None:
    assert normal_host("Bücher.example") == "xn--bcher-kva.example"
    assert normal_host("bücher.example") in AllowedHosts(("BÜCHER.example",))


def test_nothing_is_allowed_by_nothing() -> None:
    assert "shop.example" not in AllowedHosts(())


def test_addresses_are_allowed_by_name_alone() -> None:
    assert "10.0.0.5" in AllowedHosts(("10.0.0.5",))
    assert "::1" in AllowedHosts(("0:0::1",))
    assert "10.0.0.5" not in AllowedHosts(("*.0.0.5",))


@pytest.mark.parametrize(
    "pattern", ["", "*", "*.", "*.*.example", "shop.*", "https://shop.example", "a b", "a..b", "a/b"]
)
def test_what_is_no_host_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"allow_host: .* neither a host"):
        AllowedHosts((pattern,))

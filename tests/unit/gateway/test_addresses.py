"""The addresses to which a gateway connects for its callers: the public internet, and those that an operator allows."""

from ipaddress import ip_address, ip_network

import pytest

from gateway.rules.addresses import METADATA, REFUSED, allowing, objection, objection_to

OPTION = "--webhooks-allow"
LOOPBACK = allowing([ip_network("127.0.0.0/8")])
EVERYTHING = tuple(ip_network(text) for text in ("0.0.0.0/0", "::/0"))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "100.63.255.255", "172.32.0.1"])
def test_public_addresses_may_be_sent_to(text: str) -> None:
    assert objection(ip_address(text), (), option=OPTION) is None


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.1.1"),
        *("172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "64:ff9b::7f00:1", "64:ff9b::101:101"),
        *("64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1"),
        *("fd00::1", "fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_what_is_not_on_the_public_internet_is_refused(text: str) -> None:
    assert objection(ip_address(text), (), option=OPTION) is not None


def test_an_address_of_ipv4_in_one_of_ipv6_is_told_how_to_write_it() -> None:
    found = objection(ip_address("::ffff:1.1.1.1"), (), option=OPTION)
    assert found is not None
    assert found.endswith("is another form of 1.1.1.1; write it in that form")


def test_both_ends_of_every_refused_network_are_refused() -> None:
    for network in REFUSED:
        for address in (network[0], network[-1]):
            assert objection(address, (), option=OPTION) is not None, address


def test_an_operator_allows_the_loopback_of_both_kinds_by_one_network() -> None:
    for text in ("127.0.0.1", "127.8.9.10", "::1"):
        assert objection(ip_address(text), LOOPBACK, option=OPTION) is None
    for text in ("10.0.0.1", "::2", "169.254.0.1", "::ffff:127.0.0.1"):
        assert objection(ip_address(text), LOOPBACK, option=OPTION) is not None


@pytest.mark.parametrize("address", METADATA)
def test_no_operator_allows_credentials_of_the_machine(address: object) -> None:
    assert objection(ip_address(str(address)), EVERYTHING, option=OPTION) is not None


def test_every_address_of_a_host_counts() -> None:
    public, private = ip_address("1.1.1.1"), ip_address("10.0.0.1")
    assert objection_to([public], (), is_plain=False, option=OPTION) is None
    assert objection_to([public, private], (), is_plain=False, option=OPTION) is not None
    assert objection_to([private, public], (), is_plain=False, option=OPTION) is not None
    assert objection_to([], (), is_plain=False, option=OPTION) is not None


def test_plain_http_goes_only_where_an_operator_allowed_it() -> None:
    assert "https" in (objection_to([ip_address("1.1.1.1")], LOOPBACK, is_plain=True, option=OPTION) or "")
    assert objection_to([ip_address("127.0.0.1")], LOOPBACK, is_plain=True, option=OPTION) is None

"""Fetching from a real server on this machine: limits, retries, redirects, and addresses that are refused."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from item.catalog.listing import Listing, Picture
from item.errors import ConfigError, PictureError
from item.fetching.fetcher import Fetcher, FetchLimits, parse_url, seconds_of
from item.fetching.hosts import Address, AllowedHosts, is_public
from tests.fetching.picture_server import Shop, answer, in_turn, running_shop, slowly

QUICK = FetchLimits(timeout_s=0.5, attempts=3, backoff_s=0.01, max_wait_s=2, max_redirects=2, at_once=4)
MAX_BYTES = 5000


@pytest.fixture
def shop() -> Iterator[Shop]:
    with running_shop() as shop:
        yield shop


@contextmanager
def fetching(*hosts: str, **changes: Any) -> Iterator[Fetcher]:
    values: dict[str, Any] = {"max_bytes": MAX_BYTES, "limits": QUICK, "is_allowed": lambda _: True} | changes
    with Fetcher(AllowedHosts(hosts or ("localhost",)), **values) as fetcher:
        yield fetcher


def reason(url: str, *hosts: str, **changes: Any) -> str:
    with fetching(*hosts, **changes) as fetcher, pytest.raises(PictureError) as error:
        fetcher.fetch(url)
    assert error.value.field == "image"
    return error.value.reason


def test_bytes_come_as_they_are(shop: Shop) -> None:
    with fetching() as fetcher:
        assert (
            fetcher.fetch(shop.url("/1.jpg?size=2&name=a%20b", answer(200, b"\x00" * MAX_BYTES))) == b"\x00" * MAX_BYTES
        )
        shop.answers["/gr%C3%BCn%20a.jpg"] = answer(200, b"green")
        assert fetcher.fetch(shop.url("/grün a.jpg")) == b"green"


def test_hosts_that_are_not_allowed_are_not_asked(shop: Shop) -> None:
    url = shop.url("/1.jpg", answer())
    assert "host 'localhost' is not allowed; add --allow-host localhost" in reason(url, "*.localhost", "shop.example")
    assert "host '127.0.0.1' is not allowed" in reason(shop.url("/1.jpg", host="127.0.0.1"))
    assert not shop.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
def test_addresses_that_are_not_public_are_refused(shop: Shop, host: str) -> None:
    """Strict is what a fetcher is where nobody says otherwise."""
    with Fetcher(AllowedHosts((host.strip("[]"),)), max_bytes=MAX_BYTES, limits=QUICK) as strict:
        with pytest.raises(PictureError) as error:
            strict.fetch(shop.url("/1.jpg", answer(), host=host))
        assert "which is not public; see --allow-private-addresses" in error.value.reason
    assert not shop.asked


def test_one_address_that_is_not_public_is_enough(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.215.14", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = shop.url("/1.jpg", answer(), host="shop.example")
    assert "'shop.example' is at 127.0.0.1, which is not public" in reason(url, "shop.example", is_allowed=is_public)


def test_the_address_that_was_checked_is_connected_to(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands for another address at each look-up is looked up once a connection."""
    looked_up: list[str] = []

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kw: rebinding(host, *args, **kw) if host == "shop.example" else real(host, *args, **kw),
    )
    checked: list[str] = []

    def check(address: Address) -> bool:
        checked.append(str(address))
        return True

    with fetching("shop.example", is_allowed=check) as fetcher:
        assert fetcher.fetch(shop.url("/1.jpg", answer(), host="shop.example")) == b"picture"
        assert fetcher.fetch(shop.url("/1.jpg", host="shop.example")) == b"picture"  # the same connection
    assert looked_up == ["shop.example"]
    assert checked == ["127.0.0.1"]


def test_redirects_are_followed_and_checked(shop: Shop) -> None:
    end = shop.url("/end.jpg", answer())
    start = shop.url("/start", answer(302, b"", location="/middle"))
    shop.url("/middle", answer(308, b"", location=end))
    with fetching() as fetcher:
        assert fetcher.fetch(start) == b"picture"
    elsewhere = shop.url("/other", answer(301, b"", location="http://evil.example/1.jpg"))
    assert "'evil.example' is not allowed" in reason(elsewhere)
    assert "scheme 'file', which is not fetched" in reason(
        shop.url("/f", answer(301, b"", location="file:///etc/passwd"))
    )
    loop = shop.url("/loop", answer(302, b"", location="/loop"))
    assert "redirects more than 2 times" in reason(loop)
    assert shop.asked["/loop"] == 3


def test_a_redirect_to_an_address_that_is_not_public_is_refused(shop: Shop) -> None:
    """Of the two names of this machine only the first one's address passes here."""
    start = shop.url("/start", answer(302, b"", location=shop.url("/inside", answer(), host="127.0.0.2")))
    found = reason(start, "localhost", "127.0.0.2", is_allowed=lambda one: one != ip_address("127.0.0.2"))
    assert "'127.0.0.2' is at 127.0.0.2, which is not public" in found
    assert not shop.asked["/inside"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(shop: Shop, status: int) -> None:
    url = shop.url("/1.jpg", in_turn(answer(status, b"later"), answer(status, b"later"), answer()))
    with fetching() as fetcher:
        assert fetcher.fetch(url) == b"picture"
    assert shop.asked["/1.jpg"] == 3
    assert f"answers {status}" in reason(shop.url("/2.jpg", answer(status, b"")))
    assert shop.asked["/2.jpg"] == QUICK.attempts


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410])
def test_what_stays_is_not(shop: Shop, status: int) -> None:
    body = b"" if status == 204 else b"no"
    assert f"answers {status}" in reason(shop.url("/1.jpg", answer(status, body)))
    assert shop.asked["/1.jpg"] == 1


def test_a_host_is_not_asked_before_it_wants_to_be(shop: Shop) -> None:
    """Nor for another picture."""
    busy = shop.url("/1.jpg", in_turn(answer(429, b"", retry_after="1"), answer()))
    other = shop.url("/2.jpg", slowly(0.05, answer()))
    with fetching() as fetcher:
        first = fetcher._threads.submit(fetcher.fetch, busy)
        while not shop.asked["/1.jpg"]:
            time.sleep(0.01)
        time.sleep(0.1)
        assert fetcher.fetch(other) == first.result() == b"picture"
    begin, *later = shop.times
    assert min(later) - begin >= 0.95


def test_a_host_that_wants_to_be_left_alone_is(shop: Shop) -> None:
    url = shop.url("/1.jpg", answer(503, b"", retry_after="3600"))
    assert "answers 503 Service Unavailable and asks to wait 3,600 s; try again later" in reason(url)
    assert shop.asked["/1.jpg"] == 1


def test_the_time_to_wait_may_be_a_date() -> None:
    at = datetime.now(UTC) + timedelta(seconds=100)
    assert seconds_of(format_datetime(at, usegmt=True)) == pytest.approx(100, abs=2)
    assert seconds_of(format_datetime(at - timedelta(seconds=200), usegmt=True)) == 0
    assert seconds_of("120") == 120
    assert seconds_of("soon") is None


def test_too_many_bytes_are_not_read(shop: Shop) -> None:
    assert "5,001 bytes are over max_picture_bytes = 5,000" in reason(shop.url("/1", answer(200, b"x" * 5001)))
    sent = threading.Event()

    def without_end(handler: BaseHTTPRequestHandler) -> None:
        """No length, or a wrong one, and bytes for ever."""
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 1000)
        except OSError:
            sent.set()

    assert "more bytes than max_picture_bytes = 5,000" in reason(shop.url("/2", without_end))
    assert sent.wait(5)

    def lying(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")

    assert "more bytes than" in reason(shop.url("/3", lying))


def test_a_server_that_says_too_little_is_cut_at_what_it_says(shop: Shop) -> None:
    url = shop.url("/1", answer(200, b"x" * 9000, content_length="3", connection="close"))
    with fetching() as fetcher:
        assert fetcher.fetch(url) == b"xxx"


def test_a_body_that_ends_early_is_tried_again(shop: Shop) -> None:
    cut = answer(200, b"pic", content_length="7", connection="close")
    with fetching() as fetcher:
        assert fetcher.fetch(shop.url("/1", in_turn(cut, answer()))) == b"picture"


def test_what_is_too_slow_is_given_up(shop: Shop) -> None:
    def drips(handler: BaseHTTPRequestHandler) -> None:
        """Each byte in time, all of them never."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    once = FetchLimits(timeout_s=0.4, attempts=1)
    start = time.monotonic()
    assert "not answered within 0.4 s" in reason(shop.url("/1", slowly(3, answer())), limits=once)
    assert "not answered within 0.4 s" in reason(shop.url("/2", drips), limits=once)
    assert time.monotonic() - start < 2
    late = in_turn(slowly(0.8, answer()), answer())
    with fetching() as fetcher:
        assert fetcher.fetch(shop.url("/3", late)) == b"picture"


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = reason(f"http://localhost:{taken.getsockname()[1]}/1.jpg")
    assert "no answer" in found
    assert "3 times" in found


def test_many_at_once_and_in_their_order(shop: Shop) -> None:
    listings = []
    for number in range(20):
        url = shop.url(f"/{number}", slowly(0.02 * (number % 3), answer(200, str(number).encode())))
        images = (Picture(url=url, reference=url), Picture(path=Path("2.jpg"), reference="2.jpg"))
        listings.append(Listing(product_id=str(number), images=images if number % 4 else ()))
    listings[7] = Listing(product_id="7", images=(Picture(url="http://evil.example/", reference="e"),))
    with fetching() as fetcher:
        found = list(fetcher.with_bytes(listings))
    for number, (listing, one) in enumerate(zip(listings, found, strict=True)):
        if number == 7:
            assert isinstance(one, PictureError)
            continue
        assert isinstance(one, Listing)
        assert one.product_id == listing.product_id
        assert one.images[1:] == listing.images[1:]
        if listing.images:
            assert one.images[0] == Picture(data=str(number).encode(), reference=listing.images[0].reference)
    assert 1 < shop.most_at_once <= QUICK.at_once
    assert max(shop.asked.values()) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://localhost/1.jpg", "scheme 'ftp'"),
        ("http:///1.jpg", "no host"),
        ("http://user:secret@localhost/1.jpg", "user name"),
        ("http://localhost:99999/1.jpg", "no valid URL"),
        ("http://localhost/1.jpg\nHost: evil.example", "control character"),
        ("http://evil.example\\@localhost/", "backslash"),
        ("http://[::1/1.jpg", "no valid URL"),
        ("http://a..b/1.jpg", "no valid URL"),
    ],
)
def test_urls_that_are_not_fetched(url: str, message: str) -> None:
    assert message in reason(url)


def test_urls_are_read_once() -> None:
    target = parse_url("HTTPS://Shop.Example.:8443/a%2Fb c?q=1#part")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "shop.example", 8443, "/a%2Fb%20c?q=1")
    assert parse_url(target.url) == target
    assert parse_url("http://[::1]").url == "http://[::1]:80/"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_the_certificate_is_checked_against_the_name(tmp_path: Path, shop: Shop) -> None:
    """Though the connection is made to an address."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    shop.server.socket = context.wrap_socket(shop.server.socket, server_side=True)
    url = shop.url("/1.jpg", answer()).replace("http:", "https:")
    assert "its certificate is not valid" in reason(url)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with fetching("localhost", "127.0.0.1", ssl_context=trusting) as fetcher:
        assert fetcher.fetch(url) == b"picture"
        with pytest.raises(PictureError, match=r"its certificate is not valid: .*127\.0\.0\.1"):
            fetcher.fetch(url.replace("localhost", "127.0.0.1"))


@pytest.mark.parametrize(("name", "value"), [("attempts", 0), ("timeout_s", 0), ("max_wait_s", -1), ("at_once", 0)])
def test_limits_name_what_is_wrong(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}: {value}"):
        FetchLimits(**{name: value})  # type: ignore[arg-type]

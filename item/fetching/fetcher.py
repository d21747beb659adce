"""Pictures by URL as bytes: fetched within limits, from allowed hosts and addresses alone, tried again with back-off.

The address that is checked is the one that is connected to: the connection pool of httpcore2 takes a network backend,
and ours resolves the name, checks every address that comes back, and connects to one of these. So a name that changes
between check and connection (DNS rebinding) changes nothing, and each redirect is checked like the first URL. The name
stays what the certificate is checked against. Proxies that the environment names are not used.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from item.catalog.listing import Listing, Picture
from item.errors import ConfigError, PictureError
from item.fetching.hosts import Address, AllowedHosts, is_public, normal_host

HEADERS = (("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "item-embeddings"))
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = {"http": 80, "https": 443}
_IN_TARGET = "/%:@!$&'()*+,;=~?-._[]"  # characters of a URL's path and query that stay as they are


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """When a picture is given up.

    timeout_s: seconds for one request from the connection to the last byte; looking up the name takes what the system's
    resolver takes. attempts: requests for one picture, apart from redirects. backoff_s: seconds before the second one,
    twice as many before each further one, and up to half of it less by chance. max_wait_s: the longest time that a
    server may ask us to wait. at_once: pictures that are fetched at the same time.
    """

    timeout_s: float = 30.0
    attempts: int = 4
    backoff_s: float = 1.0
    max_wait_s: float = 60.0
    max_redirects: int = 5
    at_once: int = 16

    def __post_init__(self) -> None:
        lowest = {"timeout_s": 0.001, "attempts": 1, "backoff_s": 0, "max_wait_s": 0, "max_redirects": 0, "at_once": 1}
        for name, bound in lowest.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"{name}: {getattr(self, name)} is below {bound}")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was checked for what can be read off it."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def url(self) -> str:
        """The URL, written out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class Fetcher:
    """Fetches pictures. Threads may share it.

    Args:
        hosts: the hosts that may be asked.
        max_bytes: larger pictures are refused, at the latest when so many bytes have come.
        is_allowed: which addresses may be connected to.
        ssl_context: which certificates are trusted; None: those that the system trusts.
    """

    def __init__(
        self,
        hosts: AllowedHosts,
        *,
        max_bytes: int,
        limits: FetchLimits = FetchLimits(),
        is_allowed: Callable[[Address], bool] = is_public,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.hosts, self.max_bytes, self.limits = hosts, max_bytes, limits
        self._network = _CheckedNetwork(is_allowed)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=limits.at_once,
            keepalive_expiry=15.0,
            network_backend=self._network,
        )
        self._threads = ThreadPoolExecutor(limits.at_once, thread_name_prefix="fetch")
        self._not_before: dict[str, float] = {}  # host -> when it may be asked again

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._pool.close()

    def with_bytes(self, listings: Iterable[Listing]) -> Iterator[Listing | PictureError]:
        """The listings in their order, with the bytes of a main picture that is a URL, or why it cannot be had.

        At most `limits.at_once` of them are held before they are taken.
        """
        ahead: deque[Listing | Future[Listing | PictureError]] = deque()
        for listing in listings:
            by_url = listing.images and listing.images[0].url is not None
            ahead.append(self._threads.submit(self._with_bytes, listing) if by_url else listing)
            if len(ahead) >= self.limits.at_once:
                yield _result(ahead.popleft())
        while ahead:
            yield _result(ahead.popleft())

    def fetch(self, url: str) -> bytes:
        """The bytes at a URL.

        Raises:
            PictureError: not http or https, a host or an address that is not allowed, too large, too slow, or not
                there; with the URL and what was answered.
        """
        shown = repr(url if len(url) <= 200 else f"...{url[-200:]}")
        limits = self.limits
        for attempt in range(1, limits.attempts + 1):
            try:
                return self._follow(parse_url(url))
            except _GivenUpError as error:
                raise PictureError("image", f"{shown}: {error}") from error
            except _AgainError as error:
                if attempt == limits.attempts:
                    raise PictureError("image", f"{shown}: {error}, {attempt} times; try again later") from error
            time.sleep(random.uniform(0.5, 1.0) * limits.backoff_s * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _with_bytes(self, listing: Listing) -> Listing | PictureError:
        main, *others = listing.images
        assert main.url is not None
        try:
            fetched = Picture(data=self.fetch(main.url), reference=main.reference)
        except PictureError as error:
            return error
        return replace(listing, images=(fetched, *others))

    def _follow(self, target: Target) -> bytes:
        for _ in range(self.limits.max_redirects + 1):
            if target.host not in self.hosts:
                raise _GivenUpError(f"host {target.host!r} is not allowed; add --allow-host {target.host}")
            time.sleep(max(0.0, self._not_before.get(target.host, 0.0) - time.monotonic()))
            answer = self._get(target)
            if isinstance(answer, bytes):
                return answer
            target = parse_url(urljoin(target.url, answer))
        raise _GivenUpError(f"redirects more than {self.limits.max_redirects} times; give the URL where it ends")

    def _get(self, target: Target) -> bytes | str:
        """The bytes that are answered, or the URL that is redirected to."""
        self._network.start_clock(self.limits.timeout_s)
        url = httpcore2.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        try:
            with self._pool.stream("GET", url, headers=HEADERS) as response:
                headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
                if response.status in REDIRECTS and "location" in headers:
                    return headers["location"]
                self._check_status(target.host, response.status, headers.get("retry-after"))
                return self._read(response.iter_stream(), headers.get("content-length", ""))
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            if (invalid := _certificate_error(error)) is not None:
                raise _GivenUpError(f"its certificate is not valid: {invalid.verify_message}") from error
            what = f"not answered within {self.limits.timeout_s:g} s" if _is_timeout(error) else f"no answer ({error})"
            raise _AgainError(what) from error

    def _check_status(self, host: str, status: int, retry_after: str | None) -> None:
        if status == HTTPStatus.OK:
            return
        reason = f"answers {status} {_phrase(status)}".rstrip()
        if status != HTTPStatus.TOO_MANY_REQUESTS and status < 500:
            raise _GivenUpError(f"{reason}; check the URL")
        if retry_after is not None and (wait_s := seconds_of(retry_after)) is not None:
            if wait_s > self.limits.max_wait_s:
                raise _GivenUpError(f"{reason} and asks to wait {wait_s:,.0f} s; try again later")
            self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + wait_s)
        raise _AgainError(reason)

    def _read(self, chunks: Iterator[bytes], content_length: str) -> bytes:
        limit = f"max_picture_bytes = {self.max_bytes:,}"
        if content_length.isdecimal() and int(content_length) > self.max_bytes:
            raise _GivenUpError(f"{int(content_length):,} bytes are over {limit}; shrink it")
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > self.max_bytes:
                raise _GivenUpError(f"more bytes than {limit}; shrink it")
        return bytes(data)


def parse_url(url: str) -> Target:
    """Reads a URL once; what is connected to is what was read. Raises `_GivenUpError` for one that is not fetched."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in url) or "\\" in url:
        raise _GivenUpError("has a control character or a backslash; write it as %XX")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = normal_host(parts.hostname or "")
    except ValueError as error:  # UnicodeError too
        raise _GivenUpError(f"is no valid URL ({error})") from error
    if parts.scheme not in PORTS:
        raise _GivenUpError(f"is of scheme {parts.scheme!r}, which is not fetched; give http or https")
    if not host or "@" in parts.netloc:
        raise _GivenUpError("has no host" if not host else "has a user name, which is not sent; leave it out")
    path = quote(parts.path or "/", safe=_IN_TARGET) + (
        f"?{quote(parts.query, safe=_IN_TARGET)}" if parts.query else ""
    )
    return Target(scheme=parts.scheme, host=host, port=PORTS[parts.scheme] if port is None else port, path=path)


def seconds_of(retry_after: str) -> float | None:
    """How long a header Retry-After asks to wait: seconds, or a date. None where it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


class _GivenUpError(Exception):
    """A picture that cannot be had, however often it is tried."""


class _AgainError(Exception):
    """A request that failed and may succeed later."""


class _CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to allowed addresses alone; everything that a thread does ends in time (`start_clock`)."""

    def __init__(self, is_allowed: Callable[[Address], bool]) -> None:
        self._is_allowed, self._plain = is_allowed, httpcore2.SyncBackend()
        self._thread = threading.local()

    def start_clock(self, timeout_s: float) -> None:
        """What this thread does from now on takes at most so many seconds in all."""
        self._thread.deadline = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds that are left. Raises httpcore2.ReadTimeout where none are."""
        left: float = self._thread.deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = resolve(host, port)
        for address in addresses:
            if not self._is_allowed(address):
                raise _GivenUpError(
                    f"host {host!r} is at {address}, which is not public; see --allow-private-addresses"
                )
        for address in addresses:
            try:
                plain = self._plain.connect_tcp(str(address), port, self.left_s(), local_address, socket_options)
                return _TimedStream(plain, self)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise httpcore2.ConnectError(f"host {host!r} has no address")


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose every step takes at most what is left of its thread's time."""

    def __init__(self, plain: httpcore2.NetworkStream, network: _CheckedNetwork) -> None:
        self._plain, self._network = plain, network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._plain.read(max_bytes, self._network.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._plain.write(buffer, self._network.left_s())

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _TimedStream(self._plain.start_tls(ssl_context, server_hostname, self._network.left_s()), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


def resolve(host: str, port: int) -> list[Address]:
    """Every address of a host, in the order in which they are to be tried.

    Raises `_AgainError` where the name server did not answer, `_GivenUpError` where there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _AgainError(f"host {host!r} cannot be looked up at present") from error
        raise _GivenUpError(f"host {host!r} is not known; check the URL") from error
    except (UnicodeError, OverflowError) as error:
        raise _GivenUpError(f"host {host!r}, port {port} cannot be looked up ({error})") from error
    return list(dict.fromkeys(ip_address(address[0]) for *_, address in found))


def _result(one: Listing | Future[Listing | PictureError]) -> Listing | PictureError:
    return one.result() if isinstance(one, Future) else one


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What lies behind an error, where it is that."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, httpcore2.TimeoutException)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""

"""A real HTTP server on this machine that answers as a test wants."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Shop:
    """A server of pictures: what each path answers, and how often it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        self.lock = threading.Lock()
        shop = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with shop.lock:
                    shop.asked[self.path] += 1
                    shop.times.append(time.monotonic())
                    shop.at_once += 1
                    shop.most_at_once = max(shop.most_at_once, shop.at_once)
                try:
                    shop.answers[self.path](self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # who asked went away
                finally:
                    with shop.lock:
                        shop.at_once -= 1

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def url(self, path: str, answer: Answer | None = None, host: str = "localhost") -> str:
        if answer is not None:
            self.answers[path] = answer
        return f"http://{host}:{self.port}{path}"


def answer(status: int = 200, body: bytes = b"picture", /, **headers: str) -> Answer:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"content_length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return write


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def slowly(seconds: float, then: Answer) -> Answer:
    def write(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        then(handler)

    return write


@contextmanager
def running_shop() -> Iterator[Shop]:
    """A shop that serves until the end."""
    shop = Shop()
    thread = threading.Thread(target=shop.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shop
    finally:
        shop.server.shutdown()
        thread.join()
        shop.server.server_close()

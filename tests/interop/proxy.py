"""A proxy in front of an object store. It counts requests, can delay them, and lets a fault answer for the store.

A fault is a function of the `Request`: it answers, or breaks the connection, and says whether it did. Otherwise the
request is passed on. Signatures stay valid, because the path and `Host` are passed on as they are.
"""

import dataclasses
import functools
import http.client
import http.server
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable

COMMIT = re.compile(r"(?P<table>.+)/_delta_log/(?P<version>\d{20})\.json")
NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive", "content-length"}
# Each store looks at the status; the code in the body is that of S3.
ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>by the proxy</Message></Error>'
LISTED = ("list-type=2", "comp=list")


@dataclasses.dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclasses.dataclass
class Entry:
    """A request that was made. `status` is None where there was no response."""

    begun: float
    method: str
    kind: str
    key: str
    extent: str
    sent: int = 0
    received: int = 0
    status: int | None = None
    seconds: float = 0.0


class Request:
    """A request that waits for what the fault does. `key` is the name of the object, or the prefix of a listing."""

    def __init__(self, handler: "_Handler", bucket: str) -> None:
        self._handler = handler
        url = urllib.parse.urlsplit(handler.path)
        self.method, self.query = handler.command, url.query
        path = urllib.parse.unquote(url.path) + "/"
        self.key = path.removeprefix(bucket).rstrip("/") if path.startswith(bucket) else path
        self.is_list = self.method == "GET" and any(word in self.query for word in LISTED)
        if self.is_list:
            self.key = urllib.parse.parse_qs(self.query).get("prefix", [""])[0]
        self.headers = handler.headers
        # The range that is asked for.
        self.extent = self.headers.get("Range") or self.headers.get("x-ms-range") or ""
        self.kind = kind_of(self.key, self.is_list)
        named = COMMIT.fullmatch(self.key) if self.method == "PUT" else None
        self.commit = (named["table"], int(named["version"])) if named else None

    @functools.cached_property
    def body(self) -> bytes:
        return self._handler.rfile.read(int(self.headers.get("Content-Length", 0)))

    def read_half(self) -> None:
        """Reads half of the body; afterwards only `close` is possible."""
        self._handler.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)

    def ask(self, body: bytes | None = None) -> Answer:
        """Passes it on, also with another body; returns the store's response, which the client has not received."""
        return self._handler.ask(self.body if body is None else body)

    def answer(self, answer: Answer) -> None:
        self._handler.respond(answer)

    def refuse(self, status: int, code: bytes, *headers: tuple[str, str]) -> None:
        _ = self.body
        self.answer(Answer(status, list(headers), ERROR % code))

    def answer_half(self, answer: Answer) -> None:
        """Sends half of the response, then resets the connection."""
        self._handler.respond(answer, only=len(answer.body) // 2)
        self.close(reset=True)

    def answer_in_pieces(self, answer: Answer, pieces: int, pause_seconds: float) -> None:
        self._handler.respond(answer, only=0)
        size = len(answer.body) // pieces + 1
        for start in range(0, len(answer.body), size):
            time.sleep(pause_seconds)
            self._handler.wfile.write(answer.body[start:start + size])
            self._handler.wfile.flush()

    def close(self, reset: bool) -> None:
        self._handler.end(reset)


def kind_of(key: str, is_list: bool) -> str:
    """What the object is for."""
    if is_list:
        return "list"
    name = key.rsplit("/", 1)[-1]
    if "/_delta_log/" in key:
        return "checkpoint" if "checkpoint" in name else "log"
    if name == "lease.json" or "/leases/" in key:
        return "lease"
    if "/state/" in key or name.startswith("state"):
        return "state"
    if name.startswith("deletion_vector"):
        return "vector"
    return "data" if name.endswith(".parquet") else "other"


# Returns whether the client has been answered; otherwise the request is passed on.
Fault = Callable[[Request], bool]


class Proxy:
    """`bucket` is what the paths of objects begin with. `entries` has each request, in the order of their responses."""

    # Otherwise the store sees its own.
    keeps_host = True

    def __init__(self, store: str, bucket: str, fault: Fault | None = None, latency_seconds: float = 0.0,
                 port: int = 0) -> None:
        self.store = urllib.parse.urlsplit(store)
        self.bucket = bucket
        self.fault = fault
        self.latency_seconds = latency_seconds
        self.entries: list[Entry] = []
        proxy = self

        class Handler(_Handler):
            of = proxy

        self._http = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def handle(self, request: Request) -> bool:
        return self.fault is not None and self.fault(request)

    def noted(self, request: Request, entry: Entry) -> None:
        self.entries.append(entry)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *request) -> None:
        # A client may close the connection before it has read the whole response.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*request)


class _Handler(http.server.BaseHTTPRequestHandler):
    of: Proxy
    protocol_version = "HTTP/1.1"
    # Unbuffered, a response would be two packets, and the second would wait for an acknowledgement.
    wbufsize = -1

    def pass_on(self) -> None:
        self.request_of = Request(self, self.of.bucket)
        request = self.request_of
        self.entry = Entry(time.monotonic(), self.command, request.kind, request.key, request.extent)
        if self.of.latency_seconds:
            time.sleep(self.of.latency_seconds)
        if not self.of.handle(request):
            self.respond(self.ask(request.body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def ask(self, body: bytes) -> Answer:
        store = http.client.HTTPConnection(self.of.store.hostname, self.of.store.port)
        # `Host` is the proxy's, as the signature has it.
        store.putrequest(self.command, self.path, skip_host=self.of.keeps_host, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in NOT_PASSED_ON and (self.of.keeps_host or name.lower() != "host"):
                store.putheader(name, value)
        # Some stores sign over it, so it is only where the client sent one.
        if "Content-Length" in self.headers:
            store.putheader("Content-Length", str(len(body)))
        store.endheaders(body)
        answer = store.getresponse()
        # `send_response` adds its own of these two.
        ours = {*NOT_PASSED_ON, "date", "server"}
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in ours]
        content = answer.read()
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
        store.close()
        return Answer(answer.status, headers, content)

    def respond(self, answer: Answer, only: int | None = None) -> None:
        self.note(answer.status, len(answer.body))
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[:only])
        self.wfile.flush()

    def end(self, reset: bool) -> None:
        self.note(None, 0)
        # Also where half of a response was sent.
        self.entry.status = None
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
            raise ConnectionResetError

    def note(self, status: int | None, received: int) -> None:
        if self.entry.seconds:
            return
        self.entry.status, self.entry.received = status, received
        self.entry.sent = int(self.headers.get("Content-Length", 0))
        self.entry.seconds = time.monotonic() - self.entry.begun
        self.of.noted(self.request_of, self.entry)

    def log_message(self, *_) -> None:
        pass

"""A proxy in front of an S3 server. It disturbs commits of Delta tables, and nothing else.

A commit is a PUT of `_delta_log/<version>.json`. A fault is a function of the `Commit`: it responds, or cuts the
connection, or passes the commit on. Each version of a table meets it once: a commit that is sent again is passed on.
"""

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

COMMIT = re.compile(r"/[^/]+/(?P<table>.+)/_delta_log/(?P<version>\d{20})\.json")
# A table and the number of its version.
Version = tuple[str, int]
ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>by the proxy</Message></Error>'
NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


class Commit:
    """The PUT of a commit, which waits for what the fault does."""

    def __init__(self, handler: "_Handler", table: str, version: int, body: bytes) -> None:
        self.table, self.version, self.body = table, version, body
        self._handler = handler

    def apply(self) -> int:
        """Passes it on; returns the status of the store's response, which the client does not receive."""
        return self._handler.ask(self.body)[0]

    def put_another(self, body: bytes) -> None:
        """Writes the commit of another writer at the same version."""
        status = self._handler.ask(body)[0]
        if status != 200:
            raise RuntimeError(f"the other writer's commit of {self.table} {self.version} was answered {status}")

    def answer(self, status: int, code: bytes) -> None:
        self._handler.answer(status, [], ERROR % code)

    def close(self, reset: bool) -> None:
        self._handler.close(reset)


# Returns whether the client has been answered; otherwise the commit is passed on.
Fault = Callable[[Commit], bool]


def answer_lost(commit: Commit) -> bool:
    """It is applied, and the response is 500."""
    commit.apply()
    commit.answer(500, b"InternalError")
    return True


def cut(commit: Commit) -> bool:
    """It is applied, and the connection ends before a response."""
    commit.apply()
    commit.close(reset=False)
    return True


def reset(commit: Commit) -> bool:
    """The same, by a TCP reset."""
    commit.apply()
    commit.close(reset=True)
    return True


def refused(commit: Commit) -> bool:
    """It is not applied, and the response is 500."""
    commit.answer(500, b"InternalError")
    return True


def conflict(commit: Commit) -> bool:
    """It is not applied, and the response is that of S3 to a concurrent request for the same key."""
    commit.answer(409, b"ConditionalRequestConflict")
    return True


def late(commit: Commit) -> bool:
    """It is applied after the client has stopped waiting."""
    time.sleep(LATE_SECONDS)
    commit.apply()
    commit.close(reset=False)
    return True


LATE_SECONDS = 1.5


class Proxy:
    """`fault` is applied to commits: to each once, or `always`. `statuses` has the status of each response, None if
    there was none.
    """

    def __init__(self, store: str, fault: Fault) -> None:
        self.store = urllib.parse.urlsplit(store)
        self.fault: Fault | None = fault
        self.always = False
        self.statuses: dict[Version, list[int | None]] = {}
        proxy = self

        class Handler(_Handler):
            of = proxy

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def fault_of(self, commit: Version) -> Fault | None:
        met = commit in self.statuses
        self.statuses.setdefault(commit, [])
        return self.fault if self.always or not met else None


class _Server(http.server.ThreadingHTTPServer):
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
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        named = COMMIT.fullmatch(path) if self.command == "PUT" else None
        self.commit = named and (named["table"], int(named["version"]))
        fault = self.of.fault_of(self.commit) if self.commit else None
        if not (fault and fault(Commit(self, *self.commit, body))):
            self.answer(*self.ask(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        store = http.client.HTTPConnection(self.of.store.hostname, self.of.store.port)
        # `Host` is the proxy's, as the signature has it.
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in NOT_PASSED_ON:
                store.putheader(name, value)
        store.putheader("Content-Length", str(len(body)))
        store.endheaders(body)
        answer = store.getresponse()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in NOT_PASSED_ON]
        content = answer.read()
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
        store.close()
        return answer.status, headers, content

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.note(status)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def close(self, reset: bool) -> None:
        self.note(None)
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
            raise ConnectionResetError

    def note(self, status: int | None) -> None:
        if self.commit:
            self.of.statuses[self.commit].append(status)

    def log_message(self, *_) -> None:
        pass

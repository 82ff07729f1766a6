"""Faults of commits. A commit is a PUT of `_delta_log/<version>.json`.

Each version of a table meets the fault once: a commit that is sent again is passed on.
"""

import threading
import time

import proxy

# A table and the number of its version.
Version = tuple[str, int]
Commit = proxy.Request
LATE_SECONDS = 1.5


def answer_lost(commit: Commit) -> bool:
    """It is applied, and the response is 500."""
    commit.ask()
    commit.refuse(500, b"InternalError")
    return True


def cut(commit: Commit) -> bool:
    """It is applied, and the connection ends before a response."""
    commit.ask()
    commit.close(reset=False)
    return True


def reset(commit: Commit) -> bool:
    """The same, by a TCP reset."""
    commit.ask()
    commit.close(reset=True)
    return True


def refused(commit: Commit) -> bool:
    """It is not applied, and the response is 500."""
    commit.refuse(500, b"InternalError")
    return True


def conflict(commit: Commit) -> bool:
    """It is not applied, and the response is that of S3 to a concurrent request for the same key."""
    commit.refuse(409, b"ConditionalRequestConflict")
    return True


def late(commit: Commit) -> bool:
    """It is applied after the client has stopped waiting."""
    time.sleep(LATE_SECONDS)
    commit.ask()
    commit.close(reset=False)
    return True


class Proxy(proxy.Proxy):
    """`fault` is applied to commits: to each once, or `always`. `statuses` has the status of each response, None if
    there was none. Requests for the lease wait while `lease_gate` is closed.
    """

    def __init__(self, store: str, bucket: str, fault: proxy.Fault) -> None:
        super().__init__(store, bucket, fault)
        self.always = False
        self.statuses: dict[Version, list[int | None]] = {}
        self.lease_gate = threading.Event()
        self.lease_gate.set()

    def handle(self, request: proxy.Request) -> bool:
        if request.kind == "lease":
            self.lease_gate.wait()
        if not request.commit:
            return False
        met = request.commit in self.statuses
        self.statuses.setdefault(request.commit, [])
        return (self.always or not met) and super().handle(request)

    def noted(self, request: proxy.Request, entry: proxy.Entry) -> None:
        super().noted(request, entry)
        if request.commit:
            self.statuses[request.commit].append(entry.status)

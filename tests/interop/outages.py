"""An object store that is busy, slow, refuses credentials, or breaks connections in the middle of a body.

Where the fault passes, the run waits, and nothing differs from a run without it. Where it lasts longer than
`retry_timeout`, the run fails, the tables keep what they had, and the next run continues.
"""

import itertools
import pathlib
import threading
import time
from collections.abc import Callable

import proxy
from lake import Facts, Lake, Settings, another_day, first_day, run_days

BURST_SECONDS = 30
STALLED_SECONDS = 2.0
PIECES = 8
# A type or the run failed, or the store cannot be used now.
FAILED = (1, 3, 75)


def each_once(fault: proxy.Fault, applies: Callable[[proxy.Request], bool] = lambda _: True) -> proxy.Fault:
    """Each request meets the fault once; when it is sent again, also for the rest of a range, it is passed on."""
    met: set[tuple] = set()
    lock = threading.Lock()

    def once(request: proxy.Request) -> bool:
        name = (request.method, request.key, request.query, request.extent.rsplit("-", 1)[-1])
        with lock:
            first = name not in met and applies(request)
            met.add(name)
        return first and fault(request)

    return once


def busy(request: proxy.Request) -> bool:
    request.refuse(503, b"SlowDown")
    return True


def read_cut(request: proxy.Request) -> bool:
    """The connection is reset in the middle of the response."""
    answer = request.ask()
    if answer.status not in (200, 206) or len(answer.body) < 2:
        request.answer(answer)
    else:
        request.answer_half(answer)
    return True


def write_cut(request: proxy.Request) -> bool:
    """The connection is reset in the middle of the body that the client sends."""
    request.read_half()
    request.close(reset=True)
    return True


def stalled(request: proxy.Request) -> bool:
    """The response comes after the client has stopped waiting."""
    _ = request.body
    time.sleep(STALLED_SECONDS)
    request.close(reset=False)
    return True


def in_pieces(request: proxy.Request) -> bool:
    request.answer_in_pieces(request.ask(), PIECES, pause_seconds=0.005)
    return True


def is_read(request: proxy.Request) -> bool:
    return request.method == "GET" and not request.is_list


def is_upload(request: proxy.Request) -> bool:
    return request.method == "PUT" and request.kind in ("data", "vector")


def transient(lake: Lake, fault: proxy.Fault, expected: Facts, **storage_options: str) -> bool:
    """The fault passes. Nothing differs from a run without it."""
    proxied = lake.store.proxied(fault)
    config = lake.program(proxied.url, "proxied", **storage_options)
    run_days(lake, lambda command, settings: lake.run(config, command, settings), expected)
    refused = (401, 403)
    met = [entry for entry in proxied.entries if entry.status in (None, *refused) or entry.status >= 409]
    return lake.end(f"{len(met)} of {len(proxied.entries)} requests were refused, broken or answered with an error")


def slowed(lake: Lake, expected: Facts) -> bool:
    """All responses come in pieces, and the store does not answer each tenth request in time."""
    numbers: list[int] = []

    def fault(request: proxy.Request) -> bool:
        numbers.append(len(numbers))
        return stalled(request) if is_read(request) and len(numbers) % 10 == 0 else in_pieces(request)

    return transient(lake, fault, expected, timeout="1s")


def burst(lake: Lake) -> bool:
    """From the first upload on the store is busy for half a minute, in the first load and in the next day. With the
    default settings of the repetitions the runs wait for its end.
    """
    ends: list[float] = []

    def fault(request: proxy.Request) -> bool:
        if not ends and is_upload(request):
            ends.append(time.monotonic() + BURST_SECONDS)
        return bool(ends) and time.monotonic() < ends[0] and busy(request)

    proxied = lake.store.proxied(fault)
    config = lake.program(proxied.url, "proxied", **{"backoff_config.init_backoff": "100ms"})
    took = []
    for prepare in [first_day, lambda lake: another_day(lake, 1)]:
        prepare(lake)
        ends.clear()
        begun = time.monotonic()
        lake.succeeds(config, "sync")
        took.append(time.monotonic() - begun)
        lake.check("after a burst")
    lake.expect(f"the runs waited: {took}", min(took) >= BURST_SECONDS)
    refused = sum(entry.status == 503 for entry in proxied.entries)
    return lake.end(f"{refused} requests refused in 2 x {BURST_SECONDS} s, runs of {max(took):.0f} s at most")


def lasting(lake: Lake, fault: proxy.Fault, begins: Callable[[proxy.Request], bool], says: str) -> bool:
    """From the first request on for which it `begins` all requests meet the fault, for longer than the client is
    patient. The run fails, with `says` in its output, and the next run succeeds.
    """
    begun: list[bool] = []

    def lasting_fault(request: proxy.Request) -> bool:
        if begins(request):
            begun.append(True)
        return bool(begun) and fault(request)

    proxied = lake.store.proxied(lasting_fault)
    config = lake.program(proxied.url, "proxied", max_retries="3", retry_timeout="3s")
    lake.tombstones_once = False
    failed: list[float] = []

    def run(command: str, settings: Settings) -> tuple[int, str]:
        begun.clear()
        proxied.fault = lasting_fault
        at = time.monotonic()
        code, output = lake.run(config, command, settings)
        seconds = time.monotonic() - at
        proxied.fault = None
        if code == 0:
            lake.expect(f"only the ledger met it: {output}", not begun or "recorded in the ledger" in output)
            return code, output
        failed.append(seconds)
        lake.expect(f"it fails, and says {says}: {code} {output}", code in FAILED and says in output)
        return lake.run(config, command, settings)

    run_days(lake, run)
    lake.expect("some run failed", failed != [])
    return lake.end(f"{len(failed)} runs failed, after at most {max(failed, default=0):.0f} s")


def expired(request: proxy.Request) -> bool:
    request.refuse(403, b"ExpiredToken")
    return True


def rotated(lake: Lake, expected: Facts) -> bool:
    """Every forty requests the session token, the shared access signature or the bearer token is replaced in its file,
    and the store refuses the former one. Nothing differs from a run with one secret.
    """
    store, secret = lake.store, lake.folder / "secret"
    settings = store.replaceable(secret)
    if not settings:
        return lake.end("this store takes only one secret")
    put_secret(secret, store.replacement(0))
    numbers = itertools.count(1)
    lock = threading.Lock()

    def fault(request: proxy.Request) -> bool:
        with lock:
            number = next(numbers)
            if number % 40 == 0:
                put_secret(secret, store.replacement(number))
            current = secret.read_text()
        if store.carries(request, current):
            return False
        request.refuse(*store.refusal)
        return True

    return transient(lake, fault, expected, **settings)


def put_secret(file: pathlib.Path, secret: str) -> None:
    """Replaces the file as a whole: it is read at any time."""
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(secret)
    new.replace(file)


def every(lake: Callable[[str], Lake], expected: Facts) -> bool:
    return all([
        transient(lake("busy-once"), each_once(busy), expected),
        transient(lake("reads-cut"), each_once(read_cut, is_read), expected),
        transient(lake("uploads-cut"), each_once(write_cut, is_upload), expected),
        slowed(lake("slow"), expected),
        burst(lake("burst")),
        lasting(lake("busy-for-long"), busy, is_upload, "SlowDown"),
        lasting(lake("expired"), expired, is_upload, "ExpiredToken"),
        rotated(lake("rotated"), expected),
    ])

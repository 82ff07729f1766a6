"""Counts the requests of each command to a store, behind a proxy that delays each request.

    latency.py STORE SERVER PROGRAM [ROWS [MILLISECONDS]]

SERVER is the program of the store's server (stores.py). Two types with ROWS rows each, 5,000 by default, are loaded,
synced without a change and with 1 % of changes, and maintained. Each time it prints the requests by kind and table, and
the seconds that they took. FHIR_SYNC_REQUESTS is a folder in which it leaves each request in its order.
"""

import collections
import os
import pathlib
import sys
import tempfile
import time

import lake
import proxy
import stores


def measured(copied: lake.Lake, meter: proxy.Proxy, command: str, what: str) -> None:
    meter.entries.clear()
    begun = time.monotonic()
    copied.succeeds(copied.folder / "metered.toml", command)
    seconds = time.monotonic() - begun
    entries = sorted(meter.entries, key=lambda entry: entry.begun)
    waited = sum(entry.seconds for entry in entries)
    received, sent = sum(entry.received for entry in entries), sum(entry.sent for entry in entries)
    print(f"\n{what}: {len(entries)} requests, {seconds:.1f} s, {waited:.1f} s of requests, {received:,} bytes read, "
          f"{sent:,} written")
    kinds = collections.Counter((entry.method, entry.kind) for entry in entries)
    print("  " + ", ".join(f"{count} {method} {kind}" for (method, kind), count in kinds.most_common()))
    tables = collections.Counter(table_of(copied, entry) for entry in entries)
    print("  " + ", ".join(f"{table}: {count}" for table, count in tables.most_common()), flush=True)
    if folder := os.environ.get("FHIR_SYNC_REQUESTS"):
        lines = [line_of(copied, entry, entries[0].begun) for entry in entries]
        pathlib.Path(folder, what.replace(" ", "-") + ".txt").write_text("\n".join(lines) + "\n")


def table_of(copied: lake.Lake, entry: proxy.Entry) -> str:
    parts = entry.key.removeprefix(f"{copied.name}/").split("/")
    return "/".join(parts[:2]) if parts[0] == "_fhir_sync" else parts[0]


def line_of(copied: lake.Lake, entry: proxy.Entry, begun: float) -> str:
    """When, how long, what, and how many bytes were written and read."""
    key = entry.key.removeprefix(f"{copied.name}/")
    times = f"{(entry.begun - begun) * 1000:7.0f} ms {entry.seconds * 1000:5.0f} ms"
    size = f"{entry.sent:8} {entry.received:8}"
    return f"{times} {entry.method:6} {entry.kind:10} {entry.status} {size} {key} {entry.extent}"


def main(name: str, server: str, program: str, rows: int = 5000, milliseconds: float = 20) -> int:
    with tempfile.TemporaryDirectory() as folder:
        store = stores.start(name, pathlib.Path(folder), server)
        try:
            copied = lake.Lake(program, store, "metered", pathlib.Path(folder))
            meter = store.proxied(latency_seconds=milliseconds / 1000)
            copied.program(meter.url, "metered")
            print(f"two types with {rows} rows each on {name}, {milliseconds} ms per request")
            fill(copied, range(rows), "female")
            measured(copied, meter, "sync", "first load")
            copied.server.advance(days=1)
            measured(copied, meter, "sync", "no change")
            for day in range(3):
                copied.server.advance(days=1)
                fill(copied, range(day, rows, 100), "other")
                copied.server.advance(hours=1)
                measured(copied, meter, "sync", f"1 % changed, day {day}")
            copied.server.advance(days=1)
            measured(copied, meter, "sync", "no change, later")
            measured(copied, meter, "maintain", "maintenance")
            measured(copied, meter, "maintain", "maintenance again")
            copied.check("the end")
        finally:
            store.stop()
    return 0 if copied.differences == 0 else 1


def fill(copied: lake.Lake, numbers: range, gender: str) -> None:
    for number in numbers:
        copied.server.put("Patient", f"p-{number}", gender=gender)
        copied.server.put("Observation", f"o-{number}", status="final", valueString=gender)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], *(int(argument) for argument in sys.argv[4:])))

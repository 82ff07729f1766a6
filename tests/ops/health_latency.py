#!/usr/bin/env python3
"""How fast /health answers while a sync uses all cores.

    tests/ops/health_latency.py PROGRAM [--patients N] [--seconds N] [--limit-ms MS]

A daemon loads an export in full, again and again, from a server with N synthetic patients. Meanwhile this process asks
for /health, by turns on one connection that stays open and on a new one each time, and prints the percentiles of both.
It fails if a 99th percentile is beyond the limit (5 ms). The server and this process need their share of the cores as
well, so the figures are an upper bound; a debug build says little.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time

CONFIG = """
[server]
url = "{server}"
source = "demo"
poll = {{ min_interval = "10ms", max_interval = "50ms" }}
[tables]
root = "{folder}/lake"
[state]
file = "{folder}/state.json"
[health]
listen = "127.0.0.1:0"
max_age = "1h"
[log]
format = "json"
[[export]]
name = "all"
types = ["Patient", "Encounter", "Condition", "Observation", "MedicationRequest"]
full_refresh = "* * * * * *"
"""


def line(stream, pattern):
    """The first match of a pattern in the lines of a stream."""
    for text in stream:
        if found := re.search(pattern, text):
            return found[1]
    raise SystemExit(f"the program ended without {pattern}")


def ask(connection):
    begun = time.perf_counter()
    connection.request("GET", "/health")
    response = connection.getresponse()
    body = response.read()
    return (time.perf_counter() - begun) * 1000, json.loads(body)


def measure(address, seconds):
    """Milliseconds on a connection that stays open, and on new ones; and how many of them were during a sync."""
    kept = http.client.HTTPConnection(address)
    kept.connect()
    times = {"kept connection": [], "new connections": []}
    working = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took, body = ask(kept)
        times["kept connection"].append(took)
        working += body["exports"]["all"]["now"] is not None
        new = http.client.HTTPConnection(address)
        took, _ = ask(new)
        times["new connections"].append(took)
        new.close()
        time.sleep(0.005)
    return times, working


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("program")
    arguments.add_argument("--patients", type=int, default=2000)
    arguments.add_argument("--seconds", type=float, default=30)
    arguments.add_argument("--limit-ms", type=float, default=5)
    given = arguments.parse_args()
    program = os.path.realpath(given.program)
    with tempfile.TemporaryDirectory() as folder:
        started = []

        def start(stream, *words):
            streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE}
            process = subprocess.Popen([program, *words], cwd=folder, text=True, **streams)
            started.append(process)
            return getattr(process, stream)

        try:
            demo = ["--patients", str(given.patients), "--dir", "demo", "--keep-serving"]
            server = line(start("stdout", "demo", *demo), r"runs at (\S+) until")
            config = pathlib.Path(folder, "config.toml")
            config.write_text(CONFIG.format(server=server, folder=folder))
            log = start("stderr", "run", "--config", str(config))
            address = line(log, r'"health":"([^"]+)"')
            drain = subprocess.Popen(["cat"], stdin=log, stdout=subprocess.DEVNULL)
            started.append(drain)
            times, working = measure(address, given.seconds)
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()
    count = len(times["kept connection"])
    print(f"{count} requests of each kind, {100 * working // count} % of them during a sync, {os.cpu_count()} cores")
    slow = False
    for kind, all_ms in times.items():
        all_ms.sort()
        p50, p99 = (all_ms[int(len(all_ms) * part)] for part in (0.5, 0.99))
        slow |= p99 > given.limit_ms
        print(f"{kind}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {all_ms[-1]:.2f} ms")
    raise SystemExit(f"slower than {given.limit_ms} ms" if slow else 0)


main()

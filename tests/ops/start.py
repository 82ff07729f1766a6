#!/usr/bin/env python3
"""How large a program is, and how long the daemon takes from its start until /livez answers.

    start.py PROGRAM [RUNS]

It fails when the stripped program is larger than 55 MB, or the median of the starts is a second or more. The FHIR server
does not exist: a daemon that waits for it is alive.
"""

import http.client
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MAX_MB = 55
MAX_SECONDS = 1.0
LIMIT_SECONDS = 30
CONFIG = """
[server]
url = "http://127.0.0.1:9/fhir"
[tables]
root = "{folder}/lake"
[state]
file = "{folder}/state.json"
[health]
listen = "127.0.0.1:{port}"
[[export]]
name = "all"
level = "system"
types = ["Patient"]
incremental = "0 15 * * * *"
"""


def main() -> None:
    program = pathlib.Path(sys.argv[1])
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory() as folder:
        stripped = pathlib.Path(folder, "fhir-sync")
        subprocess.run(["strip", "-o", stripped, program], check=True)
        megabytes = stripped.stat().st_size / 1e6
        seconds = [start(stripped, pathlib.Path(folder, str(run))) for run in range(runs)]
    median = statistics.median(seconds)
    print(f"stripped {megabytes:.1f} MB; start to /livez: median {median * 1e3:.0f} ms, at most {max(seconds) * 1e3:.0f} ms")
    if megabytes > MAX_MB or median >= MAX_SECONDS:
        sys.exit("over the bar")


def start(program: pathlib.Path, folder: pathlib.Path) -> float:
    folder.mkdir()
    port = free_port()
    config = folder / "fhir-sync.toml"
    config.write_text(CONFIG.format(folder=folder, port=port))
    began = time.monotonic()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([program, "run", "--config", config], stderr=log)
    try:
        while not alive(port):
            if process.poll() is not None or time.monotonic() - began > LIMIT_SECONDS:
                sys.exit(f"it did not start: {(folder / 'log').read_text()}")
            time.sleep(0.002)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait(LIMIT_SECONDS)


def alive(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How much memory a first load takes, and what an idle daemon keeps of it.

    memory.py PROGRAM [PATIENTS | FOLDER]

The daemon loads all types that `fhir-sync demo` has of this many synthetic patients (5,000), or the NDJSON files of a
folder, in a control group of 512 MiB without swap. It fails when the kernel kills the daemon, when the sync is not
complete, or when the daemon keeps 100 MB or more a minute after it. Needs root, and cgroup v1 or v2.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

LIMIT_BYTES = 512 * 1024 * 1024
MAX_IDLE_MB = 100
IDLE_SECONDS = 60
LIMIT_SECONDS = 1800
TYPES = """AllergyIntolerance CarePlan CareTeam Claim Condition Device DiagnosticReport Encounter ExplanationOfBenefit
    ImagingStudy Immunization MedicationRequest Observation Organization Patient Practitioner Procedure""".split()
CONFIG = """
[server]
url = "{url}"
[tables]
root = "{folder}/lake"
[state]
file = "{folder}/state.json"
[health]
listen = "127.0.0.1:0"
[log]
format = "json"
[[export]]
name = "all"
level = "system"
types = {types}
incremental = "0 0 0 1 1 *"
"""


def main() -> None:
    program = pathlib.Path(sys.argv[1]).resolve()
    source = sys.argv[2] if len(sys.argv) > 2 else "5000"
    with tempfile.TemporaryDirectory() as folder, control_group() as group, serving(program, source, folder) as url:
        config = pathlib.Path(folder, "fhir-sync.toml")
        config.write_text(CONFIG.format(url=url, folder=folder, types=json.dumps(TYPES)))
        log = pathlib.Path(folder, "log")
        join = lambda: pathlib.Path(group, "cgroup.procs").write_text(str(os.getpid()))
        with open(log, "wb") as out:
            daemon = subprocess.Popen([program, "run", "--config", config], stderr=out, preexec_fn=join)
        try:
            ended = wait_for(daemon, log, r'"sync (complete|partial|failed)"')
            peak_mb = resident(daemon.pid, "VmHWM")
            time.sleep(IDLE_SECONDS)
            idle_mb = resident(daemon.pid, "VmRSS")
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(90)
    print(f"sync {ended}: {peak_mb:.0f} MB at the peak, {idle_mb:.0f} MB {IDLE_SECONDS} s later")
    if ended != "complete" or idle_mb >= MAX_IDLE_MB:
        sys.exit("over the bar")


class control_group:
    """A group of processes that the kernel kills when they take more."""

    def __enter__(self) -> str:
        is_v1 = pathlib.Path("/sys/fs/cgroup/memory").is_dir()
        parent = "/sys/fs/cgroup/memory" if is_v1 else "/sys/fs/cgroup"
        self.path = pathlib.Path(parent, f"fhir-sync-memory-{os.getpid()}")
        self.path.mkdir()
        limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if is_v1 else ["memory.max"]
        for limit in limits:
            file = self.path / limit
            if file.exists():
                file.write_text(str(LIMIT_BYTES))
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        return str(self.path)

    def __exit__(self, *_) -> None:
        self.path.rmdir()


class serving:
    """The server of `fhir-sync demo`, when its own two syncs are over."""

    def __init__(self, program: pathlib.Path, source: str, folder: str) -> None:
        self.log = pathlib.Path(folder, "demo.log")
        data = ["--patients", source] if source.isdigit() else ["--data", source]
        command = [program, "demo", *data, "--keep-serving", "--dir", pathlib.Path(folder, "demo")]
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def __enter__(self) -> str:
        try:
            return wait_for(self.process, self.log, r"The server runs at (\S+) until")
        except BaseException:
            self.process.kill()
            raise

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(process: subprocess.Popen, log: pathlib.Path, pattern: str) -> str:
    for _ in range(LIMIT_SECONDS):
        if found := re.search(pattern, log.read_text()):
            return found[1]
        if process.poll() is not None:
            sys.exit(f"it ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        time.sleep(1)
    sys.exit(f"nothing after {LIMIT_SECONDS} s:\n{log.read_text()[-2000:]}")


def resident(pid: int, field: str) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()

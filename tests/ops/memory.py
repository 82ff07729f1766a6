#!/usr/bin/env python3
"""How much memory syncs take, and what an idle daemon keeps of it.

    memory.py PROGRAM [PATIENTS | FOLDER]

The daemon loads all types that `fhir-sync demo` has of this many synthetic patients (5,000), or the NDJSON files of a
folder, in a control group of 512 MiB without swap. Then 600,000 Observations are loaded into partitions by month, and
into a table whose files a second sync rewrites (`copy-on-write`). It fails when the kernel kills a process, when a sync
is not complete, or when the daemon keeps 100 MB or more a minute after it. Needs root, and cgroup v1 or v2.
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
from collections.abc import Callable

LIMIT_BYTES = 512 * 1024 * 1024
MAX_IDLE_MB = 100
IDLE_SECONDS = 60
LIMIT_SECONDS = 1800
TYPES = """AllergyIntolerance CarePlan CareTeam Claim Condition Device DiagnosticReport Encounter ExplanationOfBenefit
    ImagingStudy Immunization MedicationRequest Observation Organization Patient Practitioner Procedure""".split()
CONFIG = """
[server]
url = "{url}"
source = "memory"
[tables]
root = "{folder}/lake"
{tables}
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
MONTHS = 'Observation = { partition_by = ["year", "month"], partition_date = "effective" }'
COPY_ON_WRITE = 'update_mode = "copy-on-write"'
OBSERVATIONS = 600_000


def main() -> None:
    program = pathlib.Path(sys.argv[1]).resolve()
    source = sys.argv[2] if len(sys.argv) > 2 else "5000"
    with tempfile.TemporaryDirectory() as folder, control_group() as group:
        folder = pathlib.Path(folder)
        join = lambda: pathlib.Path(group, "cgroup.procs").write_text(str(os.getpid()))
        (folder / "all").mkdir()
        with serving(program, source, folder / "all") as url:
            of_all_types(program, url, folder / "all", join)
        before, after = folder / "before", folder / "after"
        for at, version in [(before, "1"), (after, "2")]:
            observations(at / "data", version)
        with serving(program, before / "data", before) as url:
            sync(program, url, folder / "partitioned", MONTHS, join)
            sync(program, url, folder / "copy-on-write", COPY_ON_WRITE, join)
        with serving(program, after / "data", after) as url:
            sync(program, url, folder / "copy-on-write", COPY_ON_WRITE, join, "--full-refresh")


def of_all_types(program: pathlib.Path, url: str, folder: pathlib.Path, join: Callable[[], object]) -> None:
    config, log = folder / "fhir-sync.toml", folder / "log"
    config.write_text(CONFIG.format(url=url, folder=folder, tables="", types=json.dumps(TYPES)))
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
    print(f"all types, sync {ended}: {peak_mb:.0f} MB at the peak, {idle_mb:.0f} MB {IDLE_SECONDS} s later", flush=True)
    if ended != "complete" or idle_mb >= MAX_IDLE_MB:
        sys.exit("over the bar")


def sync(
    program: pathlib.Path, url: str, folder: pathlib.Path, tables: str, join: Callable[[], object], *options: str
) -> None:
    """One sync of Observation. It fails when the kernel kills it."""
    folder.mkdir(exist_ok=True)
    config = folder / "fhir-sync.toml"
    config.write_text(CONFIG.format(url=url, folder=folder, tables=tables, types='["Observation"]'))
    began = time.monotonic()
    running = subprocess.Popen(
        [program, "sync", "--config", config, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=join
    )
    log = running.stderr.read().decode()
    _, status, usage = os.wait4(running.pid, 0)
    peak_mb = usage.ru_maxrss * 1024 / 1e6
    what = " ".join([folder.name, *options])
    print(f"{what}: {peak_mb:.0f} MB at the peak, {time.monotonic() - began:.0f} s", flush=True)
    if status != 0:
        sys.exit(f"it ended with {os.waitstatus_to_exitcode(status)}:\n{log[-2000:]}")


def observations(folder: pathlib.Path, version: str) -> None:
    """Of ninety months. Each hundredth one has another version."""
    folder.mkdir(parents=True)
    part = lambda value: f'{{"code":{{"text":"part"}},"valueQuantity":{{"value":{value}.5,"unit":"mm[Hg]"}}}}'
    with open(folder / "Observation.ndjson", "w") as out:
        for number in range(OBSERVATIONS):
            of = version if number % 100 == 0 else "1"
            month = number * 7919 % 90
            parts = f',"component":[{part(number % 97)},{part(number % 61)}]' if number % 7 == 0 else ""
            out.write(
                f'{{"resourceType":"Observation","id":"o-{number * 7919 % 1000003:07}-{number}",'
                f'"meta":{{"versionId":"{of}","lastUpdated":"2026-11-0{of}T00:00:00Z"}},"status":"final",'
                '"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category",'
                '"code":"vital-signs","display":"Vital signs"}]}],'
                f'"code":{{"coding":[{{"system":"http://loinc.org","code":"{number % 331}-4","display":"code {number % 331}"}}]}},'
                f'"subject":{{"reference":"Patient/p-{number % 9973}"}},"encounter":{{"reference":"Encounter/e-{number // 9}"}},'
                f'"effectiveDateTime":"{2018 + month // 12}-{1 + month % 12:02}-{1 + number % 28:02}T08:{number % 60:02}:00+01:00",'
                f'"issued":"2026-01-01T00:00:00Z","valueQuantity":{{"value":{number % 1000}.25,"unit":"mg/dL",'
                f'"system":"http://unitsofmeasure.org","code":"mg/dL"}}{parts}}}\n'
            )


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

    def __init__(self, program: pathlib.Path, source: str | pathlib.Path, folder: pathlib.Path) -> None:
        self.log = folder / "demo.log"
        data = ["--patients", source] if str(source).isdigit() else ["--data", source]
        command = [program, "demo", *data, "--keep-serving", "--dir", folder / "demo"]
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

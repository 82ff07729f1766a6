"""Kills and errors at each rename, link, fsync and unlink of the real program, by strace.

    sweep.py PROGRAM [PER_CALL]

A first load, a full refresh with changes and a maintenance are run again and again: each time the Nth call of one kind
in a thread kills the process, or fails with EIO or ENOSPC. Then a run without a fault must bring tables that DuckDB
reads as equal to the server, and `fhir-sync verify` must agree. PER_CALL limits the N of each kind of call; without it
all are tried. strace counts the calls of each thread by itself, so that N is small and several places are met.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "interop"))
import readback  # noqa: E402

CALLS = {
    "rename": "rename,renameat,renameat2",
    "link": "link,linkat",
    "fsync": "fsync,fdatasync,syncfs",
    "unlink": "unlink,unlinkat",
}
FAULTS = {"kill": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
# What a run is given to end by itself; strace makes it slow.
LIMIT_SECONDS = 300


def lines(resource_type, numbers, version):
    for number in numbers:
        yield json.dumps({
            "resourceType": resource_type,
            "id": f"{resource_type[0]}{number}",
            "meta": {"versionId": str(version), "lastUpdated": f"2026-01-0{version}T00:00:00Z"},
            "language": f"x-{version}",
        })


def write_data(folder, by_type):
    folder.mkdir()
    for resource_type, written in by_type.items():
        (folder / f"{resource_type}.ndjson").write_text("\n".join(written) + "\n")
    return {of: sorted(written) for of, written in by_type.items()}


class Server:
    """The demo server with the files of a folder."""

    def __init__(self, program, data, place):
        self.log = place.with_suffix(".log").open("w+")
        command = [program, "demo", "--data", data, "--dir", place, "--keep-serving"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + LIMIT_SECONDS
        while "The server runs at" not in (text := place.with_suffix(".log").read_text()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"the demo server did not start:\n{text}")
            time.sleep(0.1)
        self.url = re.search(r"The server runs at (\S+)", text)[1]

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Root:
    """A configuration, and the state and the tables beside it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def configure(self, url):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "fhir-sync.toml").write_text(f"""
[server]
url = "{url}"
source = "hospital"
poll = {{ min_interval = "10ms", max_interval = "50ms" }}
[tables]
root = "{self.folder}/lake"
[state]
file = "{self.folder}/state/state.json"
[sync]
spool_folder = "{self.folder}/state"
[maintenance]
vacuum_retention = "7days"
[[export]]
name = "all"
types = ["Patient", "Observation"]
incremental = "0 0 5 29 2 *"
""")

    def run(self, *arguments, trace=()):
        command = [*trace, self.program, *arguments, "--config", self.folder / "fhir-sync.toml"]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)

    def copy_to(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        if self.folder.exists():
            shutil.copytree(self.folder, folder)
        return Root(self.program, folder)

    def rows(self):
        connection = readback.duckdb_connection()
        read = {}
        for of in ("Patient", "Observation"):
            table = self.folder / "lake" / f"{of}.parquet"
            query = f"SELECT resource_json FROM delta_scan('{table}')"
            read[of] = sorted(row[0] for row in connection.sql(query).fetchall()) if table.exists() else []
        return read


class Phase:
    """What is disturbed: a command on a root, the server that it asks, and the rows that must be there in the end."""

    def __init__(self, name, base, url, command, expected):
        self.name, self.base, self.url, self.command, self.expected = name, base, url, command, expected

    def prepared(self, folder):
        root = self.base.copy_to(folder)
        root.configure(self.url)
        return root

    def calls_of_a_thread(self, folder, calls):
        """How often one thread makes such a call at most, in a run without a fault."""
        log = folder.with_suffix(".trace")
        trace = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={calls}"]
        ended = self.prepared(folder).run(*self.command, trace=trace)
        if ended.returncode != 0:
            raise SystemExit(f"{self.name} fails without a fault:\n{ended.stdout}{ended.stderr}")
        made = Counter(line.split()[0] for line in log.read_text().splitlines() if "(" in line)
        return max(made.values(), default=0)

    def disturbed(self, folder, calls, fault, when):
        """What is wrong after the fault and a run without one, or None; and whether the fault hit the run."""
        root = self.prepared(folder)
        inject = f"inject={calls}:{fault}:when={when}"
        trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
        hit = root.run(*self.command, trace=trace)
        ended = [root.run(*self.command)]
        if self.command[0] == "maintain":
            ended.append(root.run("sync"))
        ended.append(root.run("verify"))
        said = "\n".join(run.stdout + run.stderr for run in ended)
        if any(run.returncode != 0 for run in ended):
            return f"codes {[run.returncode for run in ended]}\n{said}", hit.returncode != 0
        if root.rows() != self.expected:
            return f"the tables differ from the server\n{said}", hit.returncode != 0
        return None, hit.returncode != 0


def sweep(phases, folder, per_call):
    tried = failed = 0
    for phase in phases:
        for kind, calls in CALLS.items():
            most = phase.calls_of_a_thread(folder / "run", calls)
            for name, fault in FAULTS.items():
                ended_by_it = bad = 0
                count = min(most, per_call or most)
                for when in range(1, count + 1):
                    wrong, was_hit = phase.disturbed(folder / "run", calls, fault, when)
                    tried, ended_by_it = tried + 1, ended_by_it + was_hit
                    if wrong:
                        failed, bad = failed + 1, bad + 1
                        print(f"{phase.name}: {name} at {kind} {when}: {wrong}", flush=True)
                print(f"{phase.name:12} {kind:7} {name:7} {count:3} tried of {most:3}, "
                      f"{ended_by_it:3} ended the run, {bad} bad", flush=True)
    print(f"{tried} faults, {failed} bad")
    return failed


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    per_call = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        first = write_data(folder / "one", {
            "Patient": list(lines("Patient", range(40), 1)),
            "Observation": list(lines("Observation", range(80), 1)),
        })
        second = write_data(folder / "two", {
            "Patient": [*lines("Patient", range(2, 30), 1), *lines("Patient", range(30, 45), 2)],
            "Observation": [*lines("Observation", range(3, 70), 1), *lines("Observation", range(70, 90), 2)],
        })
        servers = [Server(program, folder / name, folder / f"demo-{name}") for name in ("one", "two")]
        try:
            urls = [server.url for server in servers]
            empty = Root(program, folder / "empty")
            loaded = empty.copy_to(folder / "loaded")
            loaded.configure(urls[0])
            print(loaded.run("sync").stdout)
            changed = loaded.copy_to(folder / "changed")
            changed.configure(urls[1])
            print(changed.run("sync", "--full-refresh").stdout)
            phases = [
                Phase("first load", empty, urls[0], ["sync"], first),
                Phase("full refresh", loaded, urls[1], ["sync", "--full-refresh"], second),
                Phase("maintenance", changed, urls[1], ["maintain"], second),
            ]
            return sweep(phases, folder, per_call)
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    sys.exit(1 if main() else 0)

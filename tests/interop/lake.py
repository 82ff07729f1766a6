"""A lake in a store, the server that it copies, and what its tables must contain."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import TextIO

import bulk
import stores

PATIENTS, OBSERVATIONS = 60, 40
CONFIG = """
[server]
url = "{server}"
[server.poll]
min_interval = "10ms"
[tables]
root = "{root}"
[tables.storage_options]
{options}
{tables}
[state]
{state}
[sync]
spool_folder = "{spool}"
[log]
filter = "warn"
[maintenance]
purge_percent = 1
{exports}
"""
EXPORTS = """
[[export]]
name = "all"
types = ["Patient", "Observation"]
incremental = "0 15 * * * *"
"""
LEDGER = "_fhir_sync/runs"
TABLES = ["Patient.parquet", "Observation.parquet", "_fhir_sync/deleted", LEDGER]
Settings = dict[str, str]
Facts = dict[str, list]


class Lake:
    """A lake, and its server. A difference is printed and counted."""

    def __init__(self, program: str, store: stores.Store, name: str, folder: pathlib.Path) -> None:
        self.server = bulk.Server()
        self.store, self.name = store, name
        self.tombstones: set[tuple] = set()
        # A tombstone is written before the row is removed. A run that fails in between leaves one, and the next run a
        # second.
        self.tombstones_once = True
        self.differences = 0
        self._program = program
        self.folder = folder / name
        self.folder.mkdir()

    def table(self, table: str) -> str:
        return f"{self.name}/{table}"

    def program(self, url: str, name: str, tables: str = "", state: str = "", exports: str = EXPORTS,
                **storage_options: str) -> pathlib.Path:
        """The configuration of one process, which reaches the store at `url`. `tables` is more of it. Without a `state`
        it has a state file.
        """
        config, spool = self.folder / f"{name}.toml", self.folder / name
        spool.mkdir(exist_ok=True)
        of_store = self.store.settings(url) | {"backoff_config.init_backoff": "10ms"} | storage_options
        config.write_text(CONFIG.format(
            server=self.server.url, root=self.store.root(self.name), tables=tables, spool=spool, exports=exports,
            state=state or f'file = "{self.folder / name}.json"',
            options="\n".join(f'"{name}" = "{value}"' for name, value in of_store.items()),
        ))
        return config

    def run(self, config: pathlib.Path, command: str, settings: Settings | None = None) -> tuple[int, str]:
        """The exit code and the output of a command, which may have arguments."""
        process = self.begin(config, command, settings)
        output, _ = process.communicate()
        return process.returncode, output

    def begin(self, config: pathlib.Path, command: str, settings: Settings | None = None,
              stdout: int | TextIO = subprocess.PIPE) -> subprocess.Popen:
        environment = os.environ | {f"FHIR_SYNC__{name}": value for name, value in (settings or {}).items()}
        run = [self._program, *command.split(), "--config", str(config)]
        environment |= self.store.secrets()
        return subprocess.Popen(run, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True)

    def differs(self, difference: str) -> None:
        self.differences += 1
        print(f"{self.name}: {difference}", flush=True)

    def expect(self, what: str, holds: bool) -> None:
        if not holds:
            self.differs(f"not true: {what}")

    def succeeds(self, config: pathlib.Path, command: str, settings: Settings | None = None) -> str:
        """The output of a command, which must succeed."""
        code, output = self.run(config, command, settings)
        self.expect(f"{command} succeeds: {code} {output}", code == 0)
        return output

    def lines(self, resource_type: str) -> dict[str, str]:
        return {key[1]: line for key, line in self.server.lines.items() if key[0] == resource_type}

    def check(self, what: str) -> None:
        """Compares the server with what delta-rs reads from the store and with the commits in the logs."""
        for resource_type in ["Patient", "Observation"]:
            self.check_rows(what, resource_type)
            commits = [action for commit in self.store.log(self.table(f"{resource_type}.parquet")) for action in commit]
            watermarks = [action["txn"]["version"] for action in commits if "txn" in action]
            now = round(self.server.now.timestamp() * 1_000_000)
            is_newest = watermarks[-1:] == [now] and watermarks == sorted(watermarks)
            self.expect(f"{what}: the watermark is {now}: {watermarks}", is_newest)
        if self.tombstones:
            read = self.store.rows(self.table("_fhir_sync/deleted"), "SELECT resource_type, id FROM t")
            if set(read) != self.tombstones or self.tombstones_once and len(read) != len(self.tombstones):
                self.differs(f"{what}: {sorted(read)} are the tombstones, expected {sorted(self.tombstones)}")
        for table in TABLES:
            self.check_log(what, table)

    def check_rows(self, what: str, resource_type: str) -> None:
        lines = self.lines(resource_type)
        read = self.store.rows(self.table(f"{resource_type}.parquet"), "SELECT id, resource_json FROM t")
        if sorted(read) != sorted(lines.items()):
            wrong = set(read) ^ set(lines.items())
            self.differs(f"{what}: {len(read)} rows of {resource_type}, {len(wrong)} of them wrong")

    def check_log(self, what: str, table: str) -> None:
        """No commit twice, and no data file added twice."""
        commits = [action for commit in self.store.log(self.table(table)) for action in commit]
        ours = [action["commitInfo"].get("fhirSync", {}).get("commit") for action in commits if "commitInfo" in action]
        identifiers = [identifier for identifier in ours if identifier]
        adds = [action["add"] for action in commits if "add" in action]
        added = [add["path"] for add in adds if not add.get("deletionVector")]
        metadata = [action["metaData"]["id"] for action in commits if "metaData" in action]
        self.expect(f"{what}: a commit of {table} is there once", len(identifiers) == len(set(identifiers)))
        self.expect(f"{what}: a file of {table} is added once", len(added) == len(set(added)))
        self.expect(f"{what}: {table} is one and the same table", len(set(metadata)) <= 1)

    def end(self, what: str) -> bool:
        print(f"{self.name}: {what}: {self.differences} differences", flush=True)
        return self.differences == 0


def first_day(lake: Lake) -> None:
    """What the server has before the first load."""
    for number in range(PATIENTS):
        lake.server.put("Patient", f"p-{number}", gender="female")
    for number in range(OBSERVATIONS):
        lake.server.put("Observation", f"o-{number}", status="final", valueQuantity={"value": number})


def another_day(lake: Lake, day: int) -> None:
    """Changes, new resources and deletions."""
    server = lake.server
    server.advance(days=1)
    for number in range(day, PATIENTS, 9):
        server.put("Patient", f"p-{number}", gender="other")
    server.put("Patient", f"new-{day}", gender="male")
    server.put("Observation", f"new-{day}", status="final")
    for key in [("Patient", f"p-{PATIENTS - day}"), ("Observation", f"o-{day}")]:
        server.delete(*key)
        lake.tombstones.add(key)
    # Longer than `server.since_overlap`.
    server.advance(hours=1)


def days(lake: Lake) -> Iterator[tuple[str, str, Settings]]:
    """The commands, day by day, each with its settings."""
    first_day(lake)
    yield "the first load", "sync", {"TABLES__UPDATE_MODE": "copy-on-write"}
    for day in range(1, 3):
        another_day(lake, day)
        yield f"day {day}", "sync", {}
    lake.server.advance(days=1)
    yield "a day without changes", "sync", {}
    yield "a maintenance", "maintain", {}
    lake.server.advance(days=1)
    lake.server.put("Patient", "p-0", gender="unknown")
    yield "the day after", "sync", {}


def printed_counts(output: str) -> list[list[str]]:
    """The line that a sync prints for each type, without the version of its table."""
    return [line.split()[:-1] for line in output.splitlines() if line.split()[:1] in (["Patient"], ["Observation"])]


def changed_rows(types: list[list[str]]) -> list[int]:
    """Inserted, updated and deleted."""
    return [int(number) for counts in types for number in counts[2:5]]


def facts_of(commits: list[list[dict]]) -> list[tuple]:
    """The operation, numbers of rows, and watermark that each commit records; without the commits of other writers."""
    facts = []
    for commit in commits:
        info = next(action["commitInfo"] for action in commit if "commitInfo" in action)
        if not info.get("otherWriter"):
            metrics = info.get("operationMetrics", {})
            rows = tuple((name, value) for name, value in sorted(metrics.items()) if "Rows" in name or "Files" in name)
            watermarks = tuple(action["txn"]["version"] for action in commit if "txn" in action)
            facts.append((info["operation"], rows, watermarks))
    return facts


def run_days(lake: Lake, run: Callable[[str, Settings], tuple[int, str]], expected: Facts | None = None) -> Facts:
    """Runs the commands of the days by `run`, which must succeed. Compares the output of the syncs, and at the end the
    logs, with `expected`; returns them.
    """
    of: Facts = {}
    for day, command, settings in days(lake):
        code, output = run(command, settings)
        lake.expect(f"{day} succeeds: {output}", code == 0)
        if command == "sync":
            of[day] = printed_counts(output)
        lake.check(day)
    for table in TABLES:
        of[table] = facts_of(lake.store.log(lake.table(table)))
    for what, facts in (expected or {}).items():
        lake.expect(f"{what} says {facts}, not {of[what]}", of[what] == facts)
    return of


def commits(of: Facts) -> int:
    return sum(len(of[table]) for table in TABLES)

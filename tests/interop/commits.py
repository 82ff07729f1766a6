"""Commits on an S3 server whose responses are lost, and that other writers overtake.

    commits.py PROGRAM

PROGRAM syncs some days into a lake on moto, once without faults, and then once with each fault (lossy.py) at every
commit. Its output, the logs, and what delta-rs reads from moto must be the same. Among the commits are the creation of a table, a first load, deletion vectors for a table, merges, tombstones, a watermark
alone and a compaction. Then other writers commit to the same tables: a second process, and delta-rs.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator

import boto3
import bulk
import deltalake
import lossy

PATIENTS, OBSERVATIONS = 60, 40
BUCKET = "hospital"
CONFIG = """
[server]
url = "{server}"
[server.poll]
min_interval = "10ms"
[tables]
root = "s3://{bucket}/{lake}"
[tables.storage_options]
{options}
[state]
file = "{state}"
[log]
filter = "warn"
[maintenance]
purge_percent = 1
[[export]]
name = "s3"
types = ["Patient", "Observation"]
incremental = "0 15 * * * *"
"""
TABLES = ["Patient.parquet", "Observation.parquet", "_fhir_sync/deleted"]
# In the words of deltalake; botocore has others for the same.
ACCESS = {"aws_region": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
# A commit that the proxy makes; it changes no row.
OTHER_COMMIT = {"operation": "VACUUM START", "operationParameters": {}, "timestamp": 1700000000000, "otherWriter": True}


class Store:
    """moto, in a separate process, because delta-rs holds Python's lock while it reads."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._log = folder / "moto.log"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.url = self._url()
        self._client = boto3.client("s3", endpoint_url=self.url, region_name=ACCESS["aws_region"],
                                    aws_access_key_id="key", aws_secret_access_key="secret")
        self._client.create_bucket(Bucket=BUCKET)

    def _url(self) -> str:
        for _ in range(600):
            if found := re.search(r"http://127\.0\.0\.1:\d+", self._log.read_text()):
                return found[0]
            if self._process.poll() is not None:
                break
            threading.Event().wait(0.1)
        raise RuntimeError(f"moto does not start: {self._log.read_text()}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def log(self, table: str) -> list[list[dict]]:
        """The actions of each commit of a table."""
        listed = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{table}/_delta_log/").get("Contents", [])
        names = [entry["Key"] for entry in listed if entry["Key"].endswith(".json")]
        bodies = (self._client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names)
        commits = [[json.loads(line) for line in body.splitlines() if line.strip()] for body in bodies]
        expected = [f"{table}/_delta_log/{version:020}.json" for version in range(len(commits))]
        if names != expected:
            raise RuntimeError(f"{table} has gaps in its log: {names}")
        return commits

    def table(self, table: str) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(f"s3://{BUCKET}/{table}", storage_options=options(self.url))

    def rows(self, table: str, question: str) -> list[tuple]:
        """What delta-rs returns; nothing if there is no table."""
        try:
            builder = deltalake.QueryBuilder().register("t", self.table(table))
        except deltalake.exceptions.TableNotFoundError:
            return []
        answer = builder.execute(question).read_all()
        return list(zip(*(answer.column(number).to_pylist() for number in range(answer.num_columns))))


def options(url: str) -> dict[str, str]:
    return ACCESS | {"aws_endpoint": url, "allow_http": "true"}


class Lake:
    """A lake, the server that it copies, and what its tables must contain. A difference is printed and counted."""

    def __init__(self, program: str, store: Store, name: str, folder: pathlib.Path) -> None:
        self.server = bulk.Server()
        self.store, self.name = store, name
        self.tombstones: set[tuple] = set()
        # A tombstone is written before the row is removed. A run that fails in between leaves one, and the next run a
        # second.
        self.tombstones_once = True
        self.differences = 0
        self._program = program
        self._folder = folder / name
        self._folder.mkdir()

    def table(self, table: str) -> str:
        return f"{self.name}/{table}"

    def program(self, url: str, name: str, **storage_options: str) -> pathlib.Path:
        """The configuration of one process, which reaches the store at `url`."""
        config = self._folder / f"{name}.toml"
        of_store = options(url) | {"backoff_config.init_backoff": "10ms"} | storage_options
        config.write_text(CONFIG.format(
            server=self.server.url, bucket=BUCKET, lake=self.name, state=self._folder / f"{name}.json",
            options="\n".join(f'"{name}" = "{value}"' for name, value in of_store.items()),
        ))
        return config

    def run(self, config: pathlib.Path, command: str, settings: dict[str, str]) -> tuple[int, str]:
        """The exit code and the output."""
        environment = os.environ | {f"FHIR_SYNC__{name}": value for name, value in settings.items()}
        run = [self._program, command, "--config", str(config)]
        done = subprocess.run(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def differs(self, difference: str) -> None:
        self.differences += 1
        print(f"{self.name}: {difference}", flush=True)

    def expect(self, what: str, holds: bool) -> None:
        if not holds:
            self.differs(f"not true: {what}")

    def check(self, what: str) -> None:
        """Compares the server with what delta-rs reads from the store and with the commits in the logs."""
        for resource_type in ["Patient", "Observation"]:
            lines = {key[1]: line for key, line in self.server.lines.items() if key[0] == resource_type}
            read = self.store.rows(self.table(f"{resource_type}.parquet"), "SELECT id, resource_json FROM t")
            if sorted(read) != sorted(lines.items()):
                self.differs(f"{what}: {len(read)} rows of {resource_type}, {len(set(read) ^ set(lines.items()))} of them wrong")
            commits = [action for commit in self.store.log(self.table(f"{resource_type}.parquet")) for action in commit]
            watermarks = [action["txn"]["version"] for action in commits if "txn" in action]
            now = round(self.server.now.timestamp() * 1_000_000)
            self.expect(f"{what}: the watermark is {now}: {watermarks}", watermarks[-1:] == [now] and watermarks == sorted(watermarks))
        if self.tombstones:
            read = self.store.rows(self.table("_fhir_sync/deleted"), "SELECT resource_type, id FROM t")
            if set(read) != self.tombstones or self.tombstones_once and len(read) != len(self.tombstones):
                self.differs(f"{what}: {sorted(read)} are the tombstones, expected {sorted(self.tombstones)}")
        for table in TABLES:
            self.check_log(what, table)

    def check_log(self, what: str, table: str) -> None:
        """No commit twice, and no data file added twice."""
        commits = [action for commit in self.store.log(self.table(table)) for action in commit]
        identifiers = [action["commitInfo"].get("fhirSync", {}).get("commit") for action in commits if "commitInfo" in action]
        identifiers = [identifier for identifier in identifiers if identifier]
        added = [action["add"]["path"] for action in commits if "add" in action and not action["add"].get("deletionVector")]
        metadata = [action["metaData"]["id"] for action in commits if "metaData" in action]
        self.expect(f"{what}: a commit of {table} is there once", len(identifiers) == len(set(identifiers)))
        self.expect(f"{what}: a file of {table} is added once", len(added) == len(set(added)))
        self.expect(f"{what}: {table} is one and the same table", len(set(metadata)) <= 1)


def days(lake: Lake) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The commands, day by day, each with its settings."""
    server = lake.server
    for number in range(PATIENTS):
        server.put("Patient", f"p-{number}", gender="female")
    for number in range(OBSERVATIONS):
        server.put("Observation", f"o-{number}", status="final", valueQuantity={"value": number})
    yield "the first load", "sync", {"TABLES__UPDATE_MODE": "copy-on-write"}
    for day in range(1, 3):
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
        yield f"day {day}", "sync", {}
    server.advance(days=1)
    yield "a day without changes", "sync", {}
    yield "a maintenance", "maintain", {}
    server.advance(days=1)
    server.put("Patient", "p-0", gender="unknown")
    yield "the day after", "sync", {}


def printed_counts(output: str) -> list[list[str]]:
    """The line that a sync prints for each type, without the version of its table."""
    return [line.split()[:-1] for line in output.splitlines() if line.split()[:1] in (["Patient"], ["Observation"])]


def facts_of(commits: list[list[dict]]) -> list[tuple]:
    """The operation, numbers of rows, and watermark that each commit records; without the commits of the proxy."""
    facts = []
    for commit in commits:
        info = next(action["commitInfo"] for action in commit if "commitInfo" in action)
        if not info.get("otherWriter"):
            metrics = info.get("operationMetrics", {})
            rows = tuple((name, value) for name, value in sorted(metrics.items()) if "Rows" in name or "Files" in name)
            watermarks = tuple(action["txn"]["version"] for action in commit if "txn" in action)
            facts.append((info["operation"], rows, watermarks))
    return facts


Facts = dict[str, list]


def run_days(lake: Lake, run: Callable[[str, dict[str, str]], tuple[int, str]], expected: Facts | None = None) -> Facts:
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
    for what, facts in of.items():
        lake.expect(f"{what} says {expected and expected[what]}, not {facts}", expected is None or facts == expected[what])
    return of


def commits(of: Facts) -> int:
    return sum(len(of[table]) for table in TABLES)


def end(lake: Lake, what: str) -> bool:
    print(f"{lake.name}: {what}: {lake.differences} differences", flush=True)
    return lake.differences == 0


def undisturbed(lake: Lake) -> tuple[bool, Facts]:
    config = lake.program(lake.store.url, "direct")
    of = run_days(lake, lambda command, settings: lake.run(config, command, settings))
    kinds = {operation for table in TABLES for operation, _, _ in of[table]}
    for kind in ["CREATE TABLE", "SET TBLPROPERTIES", "MERGE", "WRITE", "OPTIMIZE"]:
        lake.expect(f"a {kind} is among the commits: {kinds}", kind in kinds)
    alone = [rows for table in TABLES for operation, rows, watermarks in of[table]
             if operation == "MERGE" and watermarks and ("numSourceRows", "0") in rows]
    lake.expect("a watermark alone is among the commits", alone != [])
    return end(lake, f"{commits(of)} commits"), of


def disturbed(lake: Lake, fault: lossy.Fault, answers: list[int | None], expected: Facts) -> bool:
    """Each commit meets the fault and gets these responses. Nothing else differs from a run without faults."""
    proxy = lossy.Proxy(lake.store.url, fault)
    config = lake.program(proxy.url, "proxied")
    run_days(lake, lambda command, settings: lake.run(config, command, settings), expected)
    for commit, statuses in proxy.statuses.items():
        lake.expect(f"{commit} is answered {answers}, not {statuses}", statuses == answers)
    met, every = len(proxy.statuses), commits(expected)
    lake.expect(f"each of {every} commits has met it, not {met}", met == every)
    return end(lake, f"{met} commits, each answered {answers}")


def overtaken(lake: Lake, expected: Facts) -> bool:
    """Before each commit another writer commits at the same version: it creates the table if there is none, else it
    changes no row.
    """
    foreign: set[lossy.Version] = set()

    def other_first(commit: lossy.Commit) -> bool:
        if commit.version == 0:
            actions = [json.loads(line) for line in commit.body.splitlines()]
            for action in actions:
                action.get("metaData", {})["id"] = str(uuid.uuid4())
            commit.put_another("\n".join(json.dumps(action) for action in actions).encode())
            foreign.add((commit.table, 0))
        # The commit is sent again at the next version; it is overtaken only once.
        elif commit.version == 1 or (commit.table, commit.version - 1) not in foreign:
            commit.put_another(json.dumps({"commitInfo": OTHER_COMMIT}).encode())
            foreign.add((commit.table, commit.version))
        return False

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        code, output = lake.run(config, command, settings)
        if command == "maintain":
            lake.expect(f"a maintenance leaves what other writers change: {output}", code != 0 and "other writers" in output)
            # One attempt for each commit that is still missing in one table: the tombstones of each type are one
            # commit.
            for _ in range(2):
                code, output = (code, output) if code == 0 else lake.run(config, command, settings)
        return code, output

    config = lake.program(lossy.Proxy(lake.store.url, other_first).url, "proxied")
    run_days(lake, run, expected)
    return end(lake, f"{len(foreign)} commits of other writers")


def refused_for_good(lake: Lake, expected: Facts) -> bool:
    """No commit is applied, however often it is sent. The run fails, changes nothing, and the next run succeeds."""
    proxy = lossy.Proxy(lake.store.url, lossy.refused)
    proxy.always = True
    config = lake.program(proxy.url, "proxied", max_retries="1")
    failures = 0

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        nonlocal failures
        before = [lake.store.log(lake.table(table)) for table in TABLES]
        proxy.fault = lossy.refused
        code, output = lake.run(config, command, settings)
        failures += code != 0
        lake.expect(f"{command} fails: {output}", code != 0)
        after = [lake.store.log(lake.table(table)) for table in TABLES]
        lake.expect("a run that fails leaves the tables as they were", before == after)
        proxy.fault = None
        return lake.run(config, command, settings)

    run_days(lake, run, expected)
    return end(lake, f"{failures} runs failed and were repeated")


def uncertain(lake: Lake, fault: lossy.Fault, **storage_options: str) -> bool:
    """A run fails although its commit may be applied. Repeated runs make the tables equal to the server."""
    config = lake.program(lossy.Proxy(lake.store.url, fault).url, "proxied", **storage_options)
    lake.tombstones_once = False
    failures = 0

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        nonlocal failures
        for _ in range(8):
            code, output = lake.run(config, command, settings)
            if code == 0:
                break
            failures += 1
        return code, output

    run_days(lake, run)
    lake.expect("some run failed", failures > 0)
    return end(lake, f"{failures} runs failed and were repeated")


def another_process(lake: Lake, expected: Facts) -> bool:
    """At the first commit of each run a second process runs the same command from beginning to end."""
    ran: list[tuple[int, str]] = []
    lock = threading.Lock()

    def other_first(_: lossy.Commit) -> bool:
        with lock:
            if not ran:
                ran.append(lake.run(other, *asked))
        return False

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        nonlocal asked
        asked, ran[:] = (command, settings), []
        code, output = lake.run(held, command, settings)
        if command == "maintain":
            lake.expect(f"a maintenance leaves what other writers change: {output}", code != 0 and "other writers" in output)
            return ran[0]
        lake.expect(f"the other process succeeds: {ran}", [code for code, _ in ran] == [0])
        changes.append([sum(changed(of)) for of in (output, ran[0][1])])
        return code, output

    asked: tuple[str, dict[str, str]] = ("", {})
    changes: list[list[int]] = []
    lake.tombstones_once = False
    proxy = lossy.Proxy(lake.store.url, other_first)
    held, other = lake.program(proxy.url, "held"), lake.program(lake.store.url, "other")
    run_days(lake, run)
    rows = [sum(changed_rows(facts)) for day, facts in expected.items() if day not in TABLES]
    lake.expect(f"each row is changed by exactly one of the two, {rows} a day, not {changes}", rows == [sum(both) for both in changes])
    return end(lake, f"rows that the held one and the other one changed: {changes}")


def changed(output: str) -> list[int]:
    return changed_rows(printed_counts(output))


def changed_rows(types: list[list[str]]) -> list[int]:
    """Inserted, updated and deleted."""
    return [int(number) for counts in types for number in counts[2:5]]


def race(lake: Lake) -> bool:
    """Two processes at the same time."""
    configs = [lake.program(lake.store.url, f"process-{number}") for number in range(2)]
    lake.tombstones_once = False

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            ends = list(threads.map(lambda config: lake.run(config, command, settings), configs))
        if command == "maintain":
            # Each of them may have left a table to the other.
            ends = [lake.run(configs[0], command, settings)]
        return max(ends)

    run_days(lake, run)
    return end(lake, "two processes")


def another_engine(lake: Lake) -> bool:
    """Before each commit to the table, delta-rs compacts it and deletes a row that the commit inserts again."""
    before: list[str] = []

    def other_first(commit: lossy.Commit) -> bool:
        # The commit that is sent again at the next version is not overtaken again.
        if commit.version > 1 and commit.table.endswith("Patient.parquet") and not before:
            table = lake.store.table(commit.table)
            before.append("OPTIMIZE" if table.optimize.compact()["numFilesAdded"] else "nothing")
            if table.delete("id = 'p-0'")["num_deleted_rows"]:
                before.append("DELETE")
        return False

    def run(command: str, settings: dict[str, str]) -> tuple[int, str]:
        before.clear()
        lake.server.advance(hours=1)
        lake.server.put("Patient", "p-0", gender="female")
        code, output = lake.run(config, command, settings | {"TABLES__UPDATE_MODE": "copy-on-write"})
        done.extend(before)
        if command == "maintain":
            lake.expect(f"a maintenance leaves what other writers change: {before} {output}", not before or code != 0)
            return lake.run(config, "sync", settings | {"TABLES__UPDATE_MODE": "copy-on-write"})
        return code, output

    done: list[str] = []
    config = lake.program(lossy.Proxy(lake.store.url, other_first).url, "proxied")
    run_days(lake, run)
    lake.expect(f"it did both: {done}", {"OPTIMIZE", "DELETE"} <= set(done))
    return end(lake, f"delta-rs before its commits: {', '.join(done)}")


def main(program: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        store = Store(folder)
        try:
            def lake(name: str) -> Lake:
                return Lake(program, store, name, folder)

            agreed, expected = undisturbed(lake("undisturbed"))
            if not agreed:
                return 1
            agreed = [
                disturbed(lake("answer-lost"), lossy.answer_lost, [500, 412], expected),
                disturbed(lake("cut"), lossy.cut, [None, 412], expected),
                disturbed(lake("reset"), lossy.reset, [None], expected),
                disturbed(lake("refused"), lossy.refused, [500, 200], expected),
                overtaken(lake("overtaken"), expected),
                refused_for_good(lake("refused-for-good"), expected),
                uncertain(lake("conflict"), lossy.conflict),
                uncertain(lake("late"), lossy.late, timeout="1s"),
                another_process(lake("another-process"), expected),
                race(lake("race")),
                another_engine(lake("another-engine")),
            ]
        finally:
            store.stop()
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

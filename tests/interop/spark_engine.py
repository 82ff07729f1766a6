"""The same random history with `tables.engine = "spark"` and with our own engine: the tables must be equal.

    spark_engine.py PROGRAM [STEPS] [SEED]

PROGRAM is built with the feature spark. It runs in the Python of `install.sh connect`. A server changes at random, and
after each step both programs sync from it. The rows, the tombstones and the counts of the ledger must be the same, and
after a full refresh those of the server. Then the Spark server is killed in the middle of a MERGE, connections are cut,
fhir-sync is killed, and its staged rows are removed; tables are handed over from one engine to the other and back; and
tables have row tracking, liquid clustering, column mapping, a constraint, a column of somebody else, and names in a
catalog.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import bulk
import deltalake
import pyarrow.parquet as parquet
import spark_connect

STEPS, SEED = 200, 20261129
TYPES = ["Patient", "Observation"]
COUNTS = ["received", "inserted", "updated", "unchanged", "stale", "duplicate", "deleted", "removed", "missing", "overruled"]
CONFIG = """
[server]
url = "{url}"
[server.poll]
min_interval = "10ms"
[tables]
root = "{root}"
typed = {typed}
{engine}
[state]
file = "{root}.state.json"
[sync]
max_missing = 1000
[log]
filter = "{filter}"
[[export]]
name = "life"
types = ["Patient", "Observation"]
"""


class Site:
    """One fhir-sync with its tables."""

    def __init__(self, program: str, url: str, folder: pathlib.Path, name: str, typed: bool, spark: str = "") -> None:
        self.lake = folder / name
        self._program, self._config = program, folder / f"{name}.toml"
        engine = f'engine = "spark"\n[tables.spark]\n{spark}' if spark else ""
        filter = "warn" if not os.environ.get("SPARK_ENGINE_LOG") else os.environ["SPARK_ENGINE_LOG"]
        text = CONFIG.format(url=url, root=self.lake, typed=str(typed).lower(), engine=engine, filter=filter)
        self._config.write_text(text)

    def begin(self, *arguments: str) -> subprocess.Popen:
        command = [self._program, "sync", "--config", str(self._config), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def sync(self, *arguments: str, may_fail: bool = False) -> tuple[int, str]:
        running = self.begin(*arguments)
        output, _ = running.communicate()
        if running.returncode != 0 and not may_fail:
            raise RuntimeError(f"sync of {self.lake.name} ends with {running.returncode}: {output}")
        return running.returncode, output

    def table(self, resource_type: str) -> pathlib.Path:
        return self.lake / f"{resource_type}.parquet"

    def rows(self, resource_type: str) -> list[tuple[str, str]]:
        return read(self.table(resource_type), "SELECT id, resource_json FROM t")

    def tombstones(self) -> set[tuple]:
        if not (self.lake / "_fhir_sync" / "deleted").exists():
            return set()
        question = "SELECT DISTINCT resource_type, id, deleted_at FROM t"
        return set(read(self.lake / "_fhir_sync" / "deleted", question))

    def counts(self) -> list[tuple]:
        """Of the last run, by type."""
        columns = ", ".join(["resource_type", *COUNTS])
        question = f"SELECT {columns} FROM t WHERE run = (SELECT max(run) FROM t)"
        return sorted(read(self.lake / "_fhir_sync" / "runs", question))

    def staged(self) -> list[pathlib.Path]:
        return list((self.lake / "_fhir_sync" / "staging").glob("*/*/rows/*.parquet"))


def read(table: pathlib.Path, question: str) -> list[tuple]:
    answer = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table))).execute(question).read_all()
    return list(zip(*(answer.column(number).to_pylist() for number in range(answer.num_columns))))


class History:
    """A server that changes at random, and the sites that follow it."""

    def __init__(self, program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int, typed: bool) -> None:
        folder.mkdir()
        self.random = random.Random(seed)
        self.server = bulk.Server()
        self.spark = spark
        self.differences = 0
        address = f'url = "sc://127.0.0.1:{spark.port}"'
        self.theirs = Site(program, self.server.url, folder, "spark", typed, address)
        self.ours = Site(program, self.server.url, folder, "delta", typed)
        self.next = 0
        # Deleted without a report since the last full refresh.
        self.silent = False
        for _ in range(20):
            self.put_new()

    def put_new(self) -> None:
        self.next += 1
        self.put(self.random.choice(TYPES), f"r-{self.next}")

    def put(self, resource_type: str, resource_id: str) -> None:
        number = self.random.randrange(1000)
        text = f"o'{number} \\ é 😀"
        if resource_type == "Patient":
            self.server.put(resource_type, resource_id, gender="female", name=[{"family": text}], multipleBirthInteger=number)
        else:
            value = {"value": number / 10, "unit": "mm[Hg]"}
            self.server.put(resource_type, resource_id, status="final", code={"text": text}, valueQuantity=value)

    def change(self) -> str:
        """Something happens on the server."""
        server, kind = self.server, self.random.choice(
            ["put", "put", "new", "new", "delete", "delete", "again", "silent", "restore", "subset", "no meta", "pass"]
        )
        keys = sorted(server.lines)
        key = self.random.choice(keys) if keys else None
        if kind == "new" or key is None:
            self.put_new()
        elif kind == "put":
            self.put(*key)
        elif kind == "delete":
            server.delete(*key)
        elif kind == "silent":
            server.delete_silently(*key)
            self.silent = True
        elif kind == "again" and server.deleted_at:
            self.put(*self.random.choice(sorted(server.deleted_at)))
        elif kind in ("restore", "subset", "no meta"):
            self.alter(key, kind)
        server.advance(seconds=self.random.choice([1, 1, 60, 7200]))
        return kind

    def alter(self, key: bulk.Key, kind: str) -> None:
        """A line that no proper server sends: an older version, a part of a resource, a resource without its times."""
        resource = json.loads(self.server.lines[key])
        meta = resource.setdefault("meta", {})
        if kind == "restore":
            meta["versionId"] = "1"
            meta["lastUpdated"] = "2025-06-01T00:00:00.000Z"
        elif kind == "subset":
            meta["tag"] = [{"code": "SUBSETTED"}]
        else:
            del resource["meta"]
        resource["language"] = self.random.choice(["en", "de", "tr"])
        self.server.lines[key] = json.dumps(resource, ensure_ascii=False)
        self.server._changed[key] = self.server.now

    def expect(self, what: str, holds: bool) -> None:
        if not holds:
            self.differences += 1
            print(f"not true: {what}", flush=True)

    def same(self, what: str) -> None:
        """Both sites have the same rows, tombstones and counts."""
        for resource_type in TYPES:
            theirs, ours = self.theirs.rows(resource_type), self.ours.rows(resource_type)
            self.expect(f"{what}: no {resource_type} is doubled", len(set(theirs)) == len(theirs))
            differ = set(theirs) ^ set(ours)
            self.expect(f"{what}: {resource_type} is the same in both, but {sorted(differ)[:2]}", not differ)
        theirs, ours = self.theirs.tombstones(), self.ours.tombstones()
        self.expect(f"{what}: the tombstones are the same, but {sorted(theirs ^ ours, key=str)[:2]}", theirs == ours)
        theirs, ours = self.theirs.counts(), self.ours.counts()
        self.expect(f"{what}: the counts are the same: {COUNTS} {theirs} {ours}", theirs == ours)
        self.expect(f"{what}: nothing is left staged", not self.theirs.staged())

    def as_the_server(self, what: str, *sites: Site) -> None:
        for site in sites:
            for resource_type in TYPES:
                expected = {(key[1], line) for key, line in self.server.lines.items() if key[0] == resource_type}
                rows = site.rows(resource_type)
                differ = set(rows) ^ expected
                self.expect(f"{what}: {resource_type} of {site.lake.name} is the server's, but {sorted(differ)[:2]}", not differ)
                self.expect(f"{what}: no {resource_type} of {site.lake.name} is doubled", len(rows) == len(set(rows)))

    def both(self, *arguments: str) -> None:
        self.theirs.sync(*arguments)
        self.ours.sync(*arguments)

    def read_by_spark(self, what: str) -> None:
        for resource_type in TYPES:
            rows = self.spark.sql(f"SELECT id, resource_json FROM delta.`{self.theirs.table(resource_type)}`")
            read = {(row["id"], row["resource_json"]) for row in rows}
            self.expect(f"{what}: Spark reads the same {resource_type}", read == set(self.theirs.rows(resource_type)))

    def steps(self, count: int) -> None:
        for step in range(1, count + 1):
            kinds = [self.change() for _ in range(self.random.choice([0, 1, 1, 2, 5]))]
            is_full = self.random.random() < 0.15
            self.both(*(["--full-refresh"] if is_full else []))
            what = f"step {step} ({', '.join(kinds)}{'; full refresh' if is_full else ''})"
            self.same(what)
            if step % 20 == 0:
                self.read_by_spark(what)
                print(f"  {step} steps, {self.differences} differences", flush=True)
            if self.differences > 5:
                break
        self.both("--full-refresh")
        self.same("the end")


def histories(program: str, spark: spark_connect.Server, folder: pathlib.Path, steps: int, seed: int) -> int:
    """Most steps are those of tables with few columns, because Spark takes seconds for each MERGE of a wide one."""
    typed = max(steps // 5, 1)
    print(f"{steps - typed} steps of narrow tables, {typed} of typed ones, seed {seed}", flush=True)
    narrow = History(program, spark, folder / "narrow", seed, False)
    narrow.steps(steps - typed)
    wide = History(program, spark, folder / "wide", seed + 1, True)
    wide.steps(typed)
    return narrow.differences + wide.differences


def many(history: History, count: int) -> None:
    """A change of many rows, so that a MERGE takes a while."""
    # What is created at the very instant of a deletion is not certainly newer.
    history.server.advance(hours=2)
    for number in range(count):
        history.put("Patient", f"m-{number}")
    history.server.advance(hours=2)


def begins_to_merge(site: Site, running: subprocess.Popen) -> None:
    """Waits until rows are staged: the MERGE follows at once."""
    while not site.staged() and running.poll() is None:
        time.sleep(0.02)


def commits(history: History, resource_type: str = "Patient") -> list[dict]:
    rows = history.spark.sql(f"DESCRIBE HISTORY delta.`{history.theirs.table(resource_type)}`")
    return [row for row in rows if "fhirSync" in (row["userMetadata"] or "")]


def killed_server(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int, times: int) -> int:
    print(f"the Spark server is killed {times} times in the middle of a MERGE", flush=True)
    history = History(program, spark, folder / "killed-server", seed, False)
    history.theirs.sync()
    ends = []
    for time_ in range(times):
        many(history, 2000 + time_)
        running = history.theirs.begin()
        begins_to_merge(history.theirs, running)
        time.sleep(history.random.uniform(0, 2.5))
        spark.kill()
        time.sleep(1)
        spark.start()
        output, _ = running.communicate()
        ends.append(running.returncode)
        if running.returncode != 0:
            print(f"  ends with {running.returncode}: {output.strip().splitlines()[-1][:160]}", flush=True)
            history.theirs.sync()
        history.as_the_server(f"after kill {time_ + 1}", history.theirs)
    print(f"  the syncs ended with {ends}", flush=True)
    numbers = [json.loads(row["userMetadata"])["fhirSync"]["commit"] for row in commits(history)]
    history.expect("each commit is there once", len(numbers) == len(set(numbers)))
    history.expect("nothing is left staged", not history.theirs.staged())
    return history.differences


def killed_sync(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int, times: int) -> int:
    print(f"fhir-sync is killed {times} times in the middle of a MERGE, and runs again at once or later", flush=True)
    history = History(program, spark, folder / "killed-sync", seed, False)
    proxy = spark_connect.Proxy(spark.port)
    address = f'url = "sc://127.0.0.1:{proxy.port}"'
    history.theirs = Site(program, history.server.url, folder / "killed-sync", "spark", False, address)
    history.theirs.sync()
    by_the_killed = 0
    for time_ in range(times):
        many(history, 1000 + time_)
        history.server.delete("Patient", f"m-{time_}")
        before, merges = commits(history), proxy.merges
        running = history.theirs.begin()
        while proxy.merges == merges and running.poll() is None:
            time.sleep(0.01)
        time.sleep(history.random.uniform(0, 3))
        running.send_signal(signal.SIGKILL)
        running.wait()
        # Spark goes on with the MERGE; a run that begins at once takes the staged files away from it.
        waits_until = time.monotonic() + (60 if time_ % 2 else 0)
        while time.monotonic() < waits_until and len(commits(history)) == len(before):
            time.sleep(1)
        landed = len(commits(history)) - len(before)
        history.theirs.sync()
        history.as_the_server(f"after kill {time_ + 1}", history.theirs)
        made = commits(history)[:-len(before)]
        print(f"  kill {time_ + 1}: {landed} commits before the next run, {len(made)} with it", flush=True)
        history.expect(f"the killed run and the next one make one commit, not {len(made)}", len(made) == 1)
        by_the_killed += landed
    print(f"  {by_the_killed} of {times} MERGEs of killed runs were committed before the next run began", flush=True)
    history.expect("nothing is left staged", not history.theirs.staged())
    return history.differences


def unstaged(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    print("a MERGE of a killed run begins when a part of its staged rows is gone", flush=True)
    history = History(program, spark, folder / "unstaged", seed, False)
    proxy = spark_connect.Proxy(spark.port)
    address = f'url = "sc://127.0.0.1:{proxy.port}"'
    history.theirs = Site(program, history.server.url, folder / "unstaged", "spark", False, address)
    history.theirs.sync()
    for time_, kept in enumerate([1, 500, 0]):
        many(history, 1000 + time_)
        before, merges = commits(history), proxy.merges
        proxy.may_pass.clear()
        running = history.theirs.begin()
        while proxy.merges == merges and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        for staged in history.theirs.staged():
            rows = parquet.read_table(staged)
            staged.unlink()
            if kept:
                parquet.write_table(rows.slice(0, kept), staged)
        proxy.may_pass.set()
        # Spark goes on with it; what it has not committed by then is refused.
        time.sleep(20)
        history.expect(f"a MERGE that finds {kept} of its rows is not committed", commits(history) == before)
        history.theirs.sync()
        history.as_the_server(f"after a MERGE that finds {kept} of its rows", history.theirs)
    return history.differences


def cut_connections(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    print("connections are cut in the middle of a MERGE", flush=True)
    history = History(program, spark, folder / "cut", seed, False)
    proxy = spark_connect.Proxy(spark.port)
    history.theirs = Site(program, history.server.url, folder / "cut", "spark", False, f'url = "sc://127.0.0.1:{proxy.port}"')
    history.theirs.sync()
    for time_ in range(4):
        many(history, 1000 + time_)
        before = len(commits(history))
        running = history.theirs.begin()
        begins_to_merge(history.theirs, running)
        cut = 0
        while running.poll() is None:
            cut += proxy.cut()
            time.sleep(history.random.uniform(0.2, 0.8))
        output, _ = running.communicate()
        history.expect(f"the sync succeeds although {cut} connections were cut: {output[-400:]}", running.returncode == 0)
        history.expect(f"one commit was made, not {len(commits(history)) - before}", len(commits(history)) == before + 1)
        history.as_the_server("after the cuts", history.theirs)
    again = history.theirs.sync()
    history.expect("a repeated run changes nothing", "nothing changed" in again[1])
    history.as_the_server("after a repeated run", history.theirs)
    return history.differences


def features(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    """Tables that our own engine refuses to write."""
    wanted = {
        "row tracking": "SET TBLPROPERTIES ('delta.enableRowTracking' = 'true')",
        "liquid clustering": "CLUSTER BY (id)",
        "column mapping": "SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')",
        "a constraint": "ADD CONSTRAINT has_id CHECK (id IS NOT NULL)",
        "a column of somebody else": "ADD COLUMNS (team STRING)",
        "a change data feed": "SET TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')",
    }
    differences = 0
    for number, (what, change) in enumerate(wanted.items()):
        print(f"a table with {what}", flush=True)
        history = History(program, spark, folder / f"feature-{number}", seed + number, number % 2 == 0)
        history.both()
        table = f"delta.`{history.theirs.table('Patient')}`"
        spark.sql(f"ALTER TABLE {table} {change}")
        if what == "a column of somebody else":
            spark.sql(f"UPDATE {table} SET team = 'red'")
            # The first full refresh after somebody else's change writes all rows again, and counts them as updated.
            history.both("--full-refresh")
        before = spark.sql(f"DESCRIBE DETAIL {table}")[0]
        history.steps(6)
        after = spark.sql(f"DESCRIBE DETAIL {table}")[0]
        for kept in ("tableFeatures", "clusteringColumns", "properties"):
            history.expect(f"{what} stays: {kept} {before[kept]} {after[kept]}", before[kept] == after[kept])
        if what == "a column of somebody else":
            teams = {row["team"] for row in spark.sql(f"SELECT DISTINCT team FROM {table}")}
            history.expect(f"updated rows keep their team, and new ones have none: {teams}", teams <= {"red", None} and "red" in teams)
        history.as_spark_reads(what, table)
        differences += history.differences
    return differences


def as_spark_reads(self: History, what: str, table: str, resource_type: str = "Patient") -> None:
    rows = self.spark.sql(f"SELECT id, resource_json FROM {table}")
    ours = set(self.ours.rows(resource_type))
    self.expect(f"{what}: Spark reads what our own engine has", {(r["id"], r["resource_json"]) for r in rows} == ours)


History.as_spark_reads = as_spark_reads


def changed_by_spark(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    print("Spark itself changes rows; a full refresh writes them again", flush=True)
    history = History(program, spark, folder / "changed", seed, True)
    history.both()
    table = f"delta.`{history.theirs.table('Patient')}`"
    spark.sql(f"UPDATE {table} SET gender = 'unknown', resource_json = '{{}}'")
    gone = min(history.theirs.rows("Patient"))[0]
    spark.sql(f"DELETE FROM {table} WHERE id = '{gone}'")
    history.put_new()
    history.server.advance(hours=2)
    history.both()
    history.both("--full-refresh")
    history.as_the_server("a full refresh", history.theirs, history.ours)
    doubled = history.theirs.rows("Patient")[0][0]
    spark.sql(f"INSERT INTO {table} SELECT * FROM {table} WHERE id = '{doubled}'")
    history.put("Patient", doubled)
    history.server.advance(hours=2)
    history.both()
    history.as_the_server("a doubled row that is updated", history.theirs)
    return history.differences


def handed_over(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    print("tables are handed over from our own engine to Spark and back, twice", flush=True)
    folder = folder / "handed-over"
    history = History(program, spark, folder, seed, False)
    address = f'url = "sc://127.0.0.1:{spark.port}"'
    many(history, 500)
    history.theirs = Site(program, history.server.url, folder, "spark", False)
    history.both()
    for time_ in range(2):
        for engine, name in ((address, "Spark"), ("", "our own engine")):
            history.theirs = Site(program, history.server.url, folder, "spark", False, engine)
            for sync in range(2):
                what = f"handed over to {name}, round {time_ + 1}, sync {sync + 1}"
                history.put_new()
                history.put("Patient", f"m-{2 * time_ + sync}")
                history.server.delete("Patient", f"m-{100 + history.next}")
                history.server.advance(hours=2)
                history.both()
                history.as_the_server(what, history.theirs, history.ours)
                received = sum(row[1] for row in history.theirs.counts())
                print(f"  {what}: {received} received", flush=True)
                # The first sync of an engine asks for all, or since its own watermark of before.
                history.expect(f"{what} is no full load: {received} received", sync == 0 or received < 20)
    history.both("--full-refresh")
    history.as_the_server("a full refresh after all", history.theirs, history.ours)
    return history.differences


def in_a_catalog(program: str, spark: spark_connect.Server, folder: pathlib.Path, seed: int) -> int:
    print("tables with names in a catalog", flush=True)
    history = History(program, spark, folder / "catalog", seed, True)
    spark.sql("CREATE SCHEMA IF NOT EXISTS fhir")
    address = f'url = "sc://127.0.0.1:{spark.port}"\nschema = "spark_catalog.fhir"'
    history.theirs = Site(program, history.server.url, folder / "catalog", "spark", True, address)
    for _ in range(4):
        history.both()
        for resource_type in TYPES:
            history.as_spark_reads("a table of a catalog", f"spark_catalog.fhir.{resource_type}", resource_type)
        history.expect("the counts are the same", history.theirs.counts() == history.ours.counts())
        for _ in range(4):
            history.change()
    return history.differences


def main(program: str, steps: int = STEPS, seed: int = SEED) -> int:
    folder = pathlib.Path(tempfile.mkdtemp())
    spark = spark_connect.Server(folder / "spark")
    parts = {
        "features": features,
        "catalog": in_a_catalog,
        "changed": changed_by_spark,
        "handed": handed_over,
        "cut": cut_connections,
        "server": lambda *of: killed_server(*of, 5),
        "unstaged": unstaged,
        "sync": lambda *of: killed_sync(*of, 10),
        "histories": lambda *of: histories(*of[:3], steps, seed),
    }
    chosen = os.environ.get("SPARK_ENGINE_PARTS", " ".join(parts)).split()
    differences = 0
    for name in chosen:
        began = time.monotonic()
        try:
            differences += parts[name](program, spark, folder, seed)
        except Exception as error:
            differences += 1
            print(f"{name} ends early: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    spark.kill()
    print(f"{differences} differences", flush=True)
    if not differences:
        subprocess.run(["rm", "-r", folder], check=True)
    return 1 if differences else 0


if __name__ == "__main__":
    end = main(sys.argv[1], *map(int, sys.argv[2:]))
    sys.stdout.flush()
    # PySpark would look for its sessions on the server that was killed, for minutes.
    os._exit(end)

"""Some days of syncs into a lake, and after each of them every engine reads it.

    life.py PROGRAM

PROGRAM syncs, day after day, in each mode of `tables.update_mode`: a first load, updates, insertions and deletions, a
full refresh, each step of a maintenance, and a day in the other mode. After each, Polars, delta-rs and DuckDB must
return what the server has, byte for byte. spark.py adds Spark.
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import bulk
import deltalake
import polars
import readback

PATIENTS, OBSERVATIONS = 400, 1600
# A checkpoint is written after ten commits, of which a first load makes two.
DAYS, FEW_DAYS = 9, 3
CONFIG = """
[server]
url = "{url}"
[server.poll]
min_interval = "10ms"
[tables]
root = "{root}"
update_mode = "{merge}"
[state]
file = "{root}/../state.json"
[log]
filter = "warn"
[maintenance]
purge_percent = 1
vacuum_retention = "0s"
[[export]]
name = "life"
types = ["Patient", "Observation"]
incremental = "0 15 * * * *"
"""
# What every engine is asked for: an id, a column of the type and the line. `{table}` is how the engine names the table.
ROWS = {
    "Patient": "SELECT id, gender, resource_json FROM {table}",
    "Observation": "SELECT id, status, resource_json FROM {table}",
}
CHANGED = "SELECT id FROM {table} WHERE _sync_at >= {instant}"
DELETED = "SELECT id FROM {table} WHERE resource_type = '{type}' AND _sync_at >= {instant}"
TOMBSTONES = "SELECT DISTINCT resource_type, id FROM {table}"

Rows = set[tuple]
# (a table, a question, an instant) -> rows
Engine = Callable[[pathlib.Path, str, datetime.datetime], list[tuple]]


def with_polars(table: pathlib.Path, question: str, since: datetime.datetime) -> list[tuple]:
    # The instant is a column, because the SQL of Polars has no instants with a zone.
    lake = polars.SQLContext(t=polars.scan_delta(str(table)).with_columns(polars.lit(since).alias("since")), eager=True)
    return lake.execute(question.format(table="t", instant="since")).rows()


def with_delta_rs(table: pathlib.Path, question: str, since: datetime.datetime) -> list[tuple]:
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table)))
    answer = builder.execute(question.format(table="t", instant=f"TIMESTAMP '{since.isoformat()}'")).read_all()
    return list(zip(*(polars.Series(answer.column(number)).to_list() for number in range(answer.num_columns))))


def duckdb_reader() -> Engine:
    connection = readback.duckdb_connection()

    def read(table: pathlib.Path, question: str, since: datetime.datetime) -> list[tuple]:
        question = question.format(table=f"delta_scan('{table}')", instant=f"TIMESTAMPTZ '{since.isoformat()}'")
        return connection.execute(question).fetchall()

    return read


def with_parquet_alone(table: pathlib.Path, question: str, since: datetime.datetime) -> list[tuple]:
    """The files that the log names, by a reader that ignores deletion vectors."""
    files = deltalake.DeltaTable(str(table)).file_uris()
    rows = polars.concat([polars.scan_parquet(file, hive_partitioning=True) for file in files], how="diagonal")
    rows = rows.with_columns(polars.lit(since).alias("since"))
    return polars.SQLContext(t=rows, eager=True).execute(question.format(table="t", instant="since")).rows()


class Life:
    """A server, a lake, and what the tables must contain. A difference is printed and counted."""

    def __init__(self, program: str, merge: str, folder: pathlib.Path, engines: dict[str, Engine]) -> None:
        self.server = bulk.Server()
        self.lake = folder / "lake"
        self.lake.mkdir()
        self.engines = engines
        self.tombstones: Rows = set()
        self.differences = 0
        self.merge = merge
        self.days = DAYS if merge == "deletion-vectors" else FEW_DAYS
        self._program = program
        self._config = folder / "fhir-sync.toml"
        self._config.write_text(CONFIG.format(url=self.server.url, root=self.lake, merge=merge))

    def table(self, resource_type: str) -> pathlib.Path:
        return self.lake / f"{resource_type}.parquet"

    def run(self, command: str, *arguments: str, **settings: str) -> datetime.datetime:
        """Runs a command; returns when it began."""
        began = datetime.datetime.now(datetime.UTC)
        environment = os.environ | {f"FHIR_SYNC__{name}": value for name, value in settings.items()}
        command = [self._program, command, "--config", str(self._config), *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command} ends with {done.returncode}: {done.stdout}")
        return began

    def day(self, day: int) -> tuple[set, set]:
        """A day passes on the server. Returns the keys that it changed, and those that it deleted."""
        server = self.server
        server.advance(days=1)
        changed, deleted = set(), set()
        for number in range(day, PATIENTS, 23):
            if ("Patient", f"p-{number}") in server.lines:
                server.put("Patient", f"p-{number}", gender="other", birthDate=f"19{40 + day}-01-02")
                changed.add(("Patient", f"p-{number}"))
        for number in range(day, OBSERVATIONS, 31):
            if ("Observation", f"o-{number}") in server.lines:
                server.delete("Observation", f"o-{number}")
                deleted.add(("Observation", f"o-{number}"))
        for number in range(5):
            observation(server, f"o-{day}-{number}", number)
            changed.add(("Observation", f"o-{day}-{number}"))
        server.delete("Patient", f"p-{PATIENTS - day}")
        deleted.add(("Patient", f"p-{PATIENTS - day}"))
        # Longer than `server.since_overlap`, so that nothing is received twice.
        server.advance(hours=1)
        changed -= deleted
        self.tombstones |= deleted
        return changed, deleted

    def expected(self, resource_type: str) -> Rows:
        element = ROWS[resource_type].split(", ")[1]
        lines = {key[1]: line for key, line in self.server.lines.items() if key[0] == resource_type}
        return {(resource_id, json.loads(line)[element], line) for resource_id, line in lines.items()}

    def check(self, what: str, but: dict[str, Rows] | None = None) -> None:
        """Every engine reads all tables; `but` has the rows of a type if they must differ from those of the server."""
        differences = self.differences
        for resource_type, question in ROWS.items():
            expected = (but or {}).get(resource_type, self.expected(resource_type))
            self.ask(what, self.table(resource_type), question, expected)
        self.ask(what, self.lake / "_fhir_sync" / "deleted", TOMBSTONES, self.tombstones)
        if differences == self.differences:
            print(f"  {what}: the same", flush=True)

    def ask(
        self, what: str, table: pathlib.Path, question: str, expected: Rows, since: datetime.datetime = bulk.START
    ) -> None:
        for name, engine in self.engines.items():
            answer = engine(table, question, since)
            missing, unexpected, doubled = expected - set(answer), set(answer) - expected, len(answer) - len(set(answer))
            if missing or unexpected or doubled:
                self.differs(
                    f"{what}: {name} reads {len(answer)} rows of {table.name} for {question}: {len(missing)} missing, "
                    f"{len(unexpected)} unexpected, {doubled} doubled: {sorted(missing | unexpected)[:2]}"
                )

    def differs(self, difference: str) -> None:
        self.differences += 1
        print(difference)

    def expect(self, what: str, holds: bool) -> None:
        """Reports the sentence as a difference if it is not true."""
        if not holds:
            self.differs(f"not true: {what}")

    def files(self, pattern: str) -> list[pathlib.Path]:
        return [path for resource_type in ROWS for path in self.table(resource_type).glob(pattern)]


def observation(server: bulk.Server, resource_id: str, number: int) -> None:
    value = {"value": number, "unit": "mm[Hg]"}
    code = {"text": f"é {number}"}
    server.put("Observation", resource_id, status="final", code=code, valueQuantity=value)


def rows_of_last_commit(table: pathlib.Path) -> int:
    """How many rows it inserted, updated or deleted."""
    metrics = deltalake.DeltaTable(str(table)).history(1)[0]["operationMetrics"]
    return sum(int(metrics[f"numTargetRows{what}"]) for what in ("Inserted", "Updated", "Deleted"))


def days(life: Life) -> None:
    """From the first load to the full refresh."""
    server = life.server
    for number in range(PATIENTS):
        server.put("Patient", f"p-{number}", gender="female", name=[{"family": f"Ünal-{number} 😀"}])
    for number in range(OBSERVATIONS):
        observation(server, f"o-{number}", number)
    # The first deletion creates the table of tombstones.
    life.run("sync")
    for day in range(1, life.days + 1):
        changed, deleted = life.day(day)
        began = life.run("sync")
        if day == 1:
            life.check("the first day after the first load")
    for resource_type in ROWS:
        ids = {(key[1],) for key in changed if key[0] == resource_type}
        life.ask("what changed since a run", life.table(resource_type), CHANGED, ids, began)
        ids = {(key[1],) for key in deleted if key[0] == resource_type}
        question = DELETED.replace("{type}", resource_type)
        life.ask("what was deleted since a run", life.lake / "_fhir_sync" / "deleted", question, ids, began)
    life.check(f"{life.days} days")
    missing = [key for key in server.lines if key[0] == "Observation"][:20]
    for key in missing:
        server.delete_silently(*key)
    life.tombstones |= set(missing)
    life.run("sync", "--full-refresh")
    life.check("a full refresh")
    asked = life.merge == "deletion-vectors"
    life.expect("there are deletion vectors only if they are configured", bool(life.files("*.bin")) == asked)
    protocols = [deltalake.DeltaTable(str(life.table(resource_type))).protocol() for resource_type in ROWS]
    versions = {(protocol.min_reader_version, protocol.min_writer_version) for protocol in protocols}
    life.expect("without deletion vectors every reader supports the protocol", versions == ({(3, 7)} if asked else {(1, 2)}))


def maintenance(life: Life) -> None:
    for step in ["compact", "purge", "checkpoint", "vacuum"]:
        life.run("maintain", "--force", MAINTENANCE__STEPS=step)
        life.check(f"maintenance, {step}")
    checkpoints = life.files("_delta_log/_last_checkpoint")
    life.expect(f"each table has a checkpoint after {life.days} days", len(checkpoints) == (len(ROWS) if life.days == DAYS else 0))
    life.expect("a file per table is left, and no vector", len(life.files("*.parquet") + life.files("*.bin")) == len(ROWS))


def run_days(program: str, merge: str, more: dict[str, Engine], then: Callable[[Life], None] = lambda life: None) -> bool:
    """Do all engines agree with the server, during the days, the maintenance and `then`? `more` are further engines."""
    engines = {"polars": with_polars, "delta-rs": with_delta_rs, "duckdb": duckdb_reader()} | more
    print(f'tables.update_mode = "{merge}": {", ".join(engines)}')
    with tempfile.TemporaryDirectory() as folder:
        life = Life(program, merge, pathlib.Path(folder), engines)
        days(life)
        maintenance(life)
        then(life)
    return life.differences == 0


def in_the_other_mode(life: Life) -> None:
    other = {"deletion-vectors": "copy-on-write", "copy-on-write": "deletion-vectors"}[life.merge]
    life.day(DAYS + 1)
    life.run("sync")
    life.day(DAYS + 2)
    life.run("sync", TABLES__UPDATE_MODE=other)
    life.engines.pop("parquet alone", None)
    life.check(f"a day with {other}")


def main(program: str) -> int:
    agreed = [
        run_days(program, "deletion-vectors", {}, in_the_other_mode),
        run_days(program, "copy-on-write", {"parquet alone": with_parquet_alone}, in_the_other_mode),
    ]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Reads every table of a lake with Spark, and compares it with the NDJSON that was served; then Spark and fhir-sync
change the same tables in turn.

    spark.py PYTHON PROGRAM LAKE DATA

PYTHON is that of install.sh spark. Spark is one of the engines of life.py, and then changes the tables itself, with
syncs of PROGRAM in between. One Spark session does all of it.
"""

import datetime
import json
import pathlib
import subprocess
import sys
import tempfile

import life
import readback
import served

SQL = {
    "id": "SELECT id, NULL FROM delta.`{table}`",
    "resource_json": "SELECT id, resource_json FROM delta.`{table}`",
    # Not coding[0]: under ANSI, Spark's default since 4.0, that fails where the list is empty.
    "code": "SELECT id, get(code.coding, 0).code FROM delta.`{table}`",
    "issued": "SELECT id, unix_micros(issued) FROM delta.`{table}`",
    "no _extension": "SELECT id, NULL FROM delta.`{table}` WHERE _extension IS NULL",
    "valueQuantity": "SELECT count(valueQuantity.value), sum(valueQuantity.value) FROM delta.`{table}`",
    "component": """SELECT count(c.valueQuantity.value), sum(c.valueQuantity.value)
                    FROM (SELECT explode(component) AS c FROM delta.`{table}`)""",
}




class Spark:
    """A session in a separate process, because it needs other packages, and Java."""

    def __init__(self, python: str) -> None:
        script = pathlib.Path(__file__).with_name("spark_sql.py")
        self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sql(self, statement: str) -> list[dict]:
        print(json.dumps(statement), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, str):
            raise RuntimeError(f"Spark refuses {statement}: {answer}")
        return answer

    def ask(self, table: pathlib.Path, question: str) -> list[tuple]:
        return [tuple(row.values()) for row in self.sql(SQL[question].format(table=table))]

    def read(self, table: pathlib.Path, question: str, since: datetime.datetime) -> list[tuple]:
        rows = self.sql(question.format(table=f"delta.`{table}`", instant=f"TIMESTAMP '{since.isoformat()}'"))
        return [tuple(row.values()) for row in rows]

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def writes(scenario: life.Life, spark: Spark) -> None:
    """Spark reads the history and changes the tables, with syncs in between."""
    patients, observations = scenario.table("Patient"), scenario.table("Observation")
    for table in (patients, observations):
        history = spark.sql(f"DESCRIBE HISTORY delta.`{table}`")
        for operation, metric in [("MERGE", "numTargetRowsUpdated"), ("OPTIMIZE", "numRemovedFiles")]:
            recorded = [commit["operationMetrics"] or {} for commit in history if commit["operation"] == operation]
            shown = bool(recorded) and all(metric in metrics for metrics in recorded)
            scenario.expect(f"the history of {table.name} shows what each {operation} did", shown)
    following = iter(range(life.DAYS + 1, 22))

    def another_day(what: str, but: dict[str, life.Rows] | None = None) -> None:
        scenario.day(next(following))
        scenario.run("sync")
        scenario.check(f"a day after {what}", but and {"Patient": with_spark()})

    def repaired_by_full_refresh(what: str, rows: int) -> None:
        """A full refresh writes this many rows again."""
        scenario.server.advance(days=1)
        scenario.run("sync", "--full-refresh")
        scenario.check(f"a full refresh after {what}")
        written = life.rows_of_last_commit(patients) + life.rows_of_last_commit(observations)
        scenario.expect(f"the full refresh after {what} writes {rows} rows, not {written}", written == rows)

    # Two patients that no day changes before the full refresh. The second is deleted later.
    changed, gone = "p-0", None

    def with_spark() -> life.Rows:
        rows = {(i, "unknown" if i == changed else gender, line) for i, gender, line in scenario.expected("Patient")}
        return {row for row in rows if row[0] != gone}

    another_day("the maintenance")
    spark.sql(f"UPDATE delta.`{patients}` SET gender = 'unknown' WHERE id = '{changed}'")
    scenario.check("Spark's UPDATE", {"Patient": with_spark()})
    another_day("Spark's UPDATE", {"Patient": with_spark()})
    gone = "p-23"
    spark.sql(f"DELETE FROM delta.`{patients}` WHERE id = '{gone}'")
    scenario.check("Spark's DELETE", {"Patient": with_spark()})
    another_day("Spark's DELETE", {"Patient": with_spark()})
    repaired_by_full_refresh("Spark's UPDATE and DELETE", 2)
    for table in (patients, observations):
        spark.sql(f"OPTIMIZE delta.`{table}`")
    scenario.check("Spark's OPTIMIZE")
    another_day("Spark's OPTIMIZE")
    repaired_by_full_refresh("Spark's OPTIMIZE", 0)
    for table in (patients, observations):
        spark.sql(f"REORG TABLE delta.`{table}` APPLY (PURGE)")
    scenario.check("Spark's REORG … APPLY (PURGE)")
    another_day("Spark's REORG … APPLY (PURGE)")
    repaired_by_full_refresh("Spark's REORG … APPLY (PURGE)", 0)
    spark.sql("SET spark.databricks.delta.retentionDurationCheck.enabled = false")
    for table in (patients, observations):
        spark.sql(f"VACUUM delta.`{table}` RETAIN 0 HOURS")
    another_day("Spark's VACUUM")
    scenario.run("maintain", "--force")
    scenario.check("a maintenance after Spark")


def main(python: str, program: str, lake: pathlib.Path, data: pathlib.Path) -> int:
    spark = Spark(python)
    version = spark.sql("SELECT version() AS version")[0]["version"].split()[0]
    agreed = [
        served.compare(lake, served.served(data), f"spark {version}", readback.schema, spark.ask),
        life.run_days(program, "deletion-vectors", {"spark": spark.read}, lambda scenario: writes(scenario, spark)),
    ]
    spark.stop()
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve(), pathlib.Path(sys.argv[4])))

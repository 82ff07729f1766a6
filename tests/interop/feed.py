"""Reads the change data feed of tables, and compares the changes of each version with the rows of that version.

    feed.py delta-rs|spark|spark-stream LAKE…

Each LAKE is a folder of tables that followed.sh made. The rows of a version must be those of the version before,
without its deleted rows and preimages, with its inserted rows and postimages. Each row counts as often as it occurs.
"""

import collections
import pathlib
import sys
import tempfile

EFFECT = {"insert": 1, "update_postimage": 1, "update_preimage": -1, "delete": -1}
COLUMNS = "_commit_version, _change_type, id, resource_json"


class DeltaRs:
    def __init__(self, _scratch: pathlib.Path):
        import deltalake
        import polars

        self.deltalake, self.polars = deltalake, polars
        self.name = f"delta-rs {deltalake.__version__}"

    def versions(self, table: pathlib.Path) -> int:
        return self.deltalake.DeltaTable(str(table)).version()

    def rows(self, table: pathlib.Path, version: int) -> list[tuple]:
        at = self.deltalake.DeltaTable(str(table), version=version)
        builder = self.deltalake.QueryBuilder().register("t", at)
        return self.polars.DataFrame(builder.execute("SELECT id, resource_json FROM t").read_all()).rows()

    def read_feed(self, table: pathlib.Path) -> list[tuple]:
        feed = self.deltalake.DeltaTable(str(table)).load_cdf(starting_version=0, columns=COLUMNS.split(", "))
        return self.polars.DataFrame(feed.read_all()).select(COLUMNS.split(", ")).rows()


class Spark:
    def __init__(self, scratch: pathlib.Path):
        from session import session

        self.spark = session(scratch)
        self.name = f"spark {self.spark.version}"

    def versions(self, table: pathlib.Path) -> int:
        return self.spark.sql(f"DESCRIBE HISTORY delta.`{table}`").agg({"version": "max"}).first()[0]

    def rows(self, table: pathlib.Path, version: int) -> list[tuple]:
        sql = f"SELECT id, resource_json FROM delta.`{table}` VERSION AS OF {version}"
        return [tuple(row) for row in self.spark.sql(sql).collect()]

    def read_feed(self, table: pathlib.Path) -> list[tuple]:
        feed = self.spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", 0)
        return [tuple(row) for row in feed.load(str(table)).select(*COLUMNS.split(", ")).collect()]


class SparkStream(Spark):
    """As a downstream job reads it: by a stream with a checkpoint, which is stopped and started again."""

    def __init__(self, scratch: pathlib.Path):
        super().__init__(scratch)
        self.scratch, self.name = scratch, f"a stream of {self.name}"

    def read_feed(self, table: pathlib.Path) -> list[tuple]:
        place = self.scratch / f"{table.parents[1].name}-{table.stem}"
        for _ in range(2):
            feed = self.spark.readStream.format("delta").option("readChangeFeed", "true").option("startingVersion", 0)
            feed = feed.option("maxFilesPerTrigger", 1).load(str(table)).select(*COLUMNS.split(", "))
            writer = feed.writeStream.format("parquet").option("checkpointLocation", str(place / "checkpoint"))
            writer.trigger(availableNow=True).start(str(place / "feed")).awaitTermination()
        return [tuple(row) for row in self.spark.read.parquet(str(place / "feed")).collect()]


def follow(engine: DeltaRs | Spark, table: pathlib.Path, changes: collections.Counter) -> list[str]:
    by_version = collections.defaultdict(collections.Counter)
    for version, change, resource_id, line in engine.read_feed(table):
        by_version[version][resource_id, line] += EFFECT[change]
        changes[change] += 1
    differences, before = [], collections.Counter()
    for version in range(engine.versions(table) + 1):
        rows = collections.Counter(engine.rows(table, version))
        followed = collections.Counter(before)
        followed.update(by_version[version])
        # A row that was replaced by itself has a count of zero.
        if {row: count for row, count in followed.items() if count} != rows:
            differences.append(f"version {version}: {len(rows)} rows, {followed.total()} by its feed")
        before = rows
    return differences


def main(engine: str, lakes: list[pathlib.Path]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        reader = {"delta-rs": DeltaRs, "spark": Spark, "spark-stream": SparkStream}[engine](pathlib.Path(scratch))
        changes: collections.Counter = collections.Counter()
        wrong = 0
        for table in [table for lake in lakes for table in sorted(lake.glob("*.parquet"))]:
            for difference in follow(reader, table, changes):
                wrong += 1
                print(f"{table}: {reader.name} differs: {difference}")
        for change in EFFECT:
            if not changes[change]:
                wrong += 1
                print(f"{reader.name}: no {change} was in the feed, so this proves nothing")
        summary = ", ".join(f"{change} {changes[change]}" for change in EFFECT)
        print(f"{reader.name}: read: {summary}: {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [pathlib.Path(lake).resolve() for lake in sys.argv[2:]]))

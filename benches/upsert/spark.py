"""Spark merges a Parquet file of changes into a table; prints what that took, as a child of the benches does.

    spark.py SESSION FOLDER WARM CHANGES MEMORY

SESSION is the folder of session.py. FOLDER and WARM are tables of two sizes; the same merge into the small one, before
the time is taken, is what makes the session warm. CPU seconds and memory are those of the Java process: Python only
waits for it.
"""

import json
import pathlib
import sys
import tempfile
import time

interop, folder, warm, changes, memory = sys.argv[1:]
sys.path.insert(0, interop)

from session import session  # noqa: E402

MERGE = """
    MERGE INTO delta.`{table}` AS target USING changes AS source ON target.id = source.id
    WHEN MATCHED AND target._sync_hash <> source._sync_hash THEN UPDATE SET *
    WHEN NOT MATCHED THEN INSERT *
"""


def cpu_seconds(process: pathlib.Path) -> float:
    """Linux counts them in hundredths."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / 100


with tempfile.TemporaryDirectory() as scratch:
    spark = session(pathlib.Path(scratch), memory)
    process = pathlib.Path("/proc") / str(spark.sparkContext._gateway.proc.pid)
    spark.read.parquet(changes).createOrReplaceTempView("changes")
    spark.sql(MERGE.format(table=warm)).collect()
    wall, cpu = time.monotonic(), cpu_seconds(process)
    merged = spark.sql(MERGE.format(table=folder)).collect()[0]
    wall, cpu = time.monotonic() - wall, cpu_seconds(process) - cpu
    status = (process / "status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    files = spark.sql(f"DESCRIBE HISTORY delta.`{folder}` LIMIT 1").collect()[0].operationMetrics
    spark.stop()

figures = {
    "wall_seconds": wall,
    "cpu_seconds": cpu,
    "peak_rss_bytes": peak * 1024,
    "bytes_in": pathlib.Path(changes).stat().st_size,
    "bytes_out": int(files["numTargetBytesAdded"]),
    "rows": merged.num_affected_rows,
}
print(json.dumps(figures))

"""DuckDB turns NDJSON into Parquet, with the columns that it finds; prints its figures, as a child of the benches does."""

import glob
import json
import pathlib
import sys
import time

import duckdb

source, folder, threads = sys.argv[1:]
target = pathlib.Path(folder) / "duckdb.parquet"
connection = duckdb.connect(config={"threads": int(threads)})
wall, cpu = time.monotonic(), time.process_time()
columns = f"SELECT * FROM read_json_auto('{source}', format = 'newline_delimited')"
rows = connection.execute(f"COPY ({columns}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)").fetchall()[0][0]
wall, cpu = time.monotonic() - wall, time.process_time() - cpu
status = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
figures = {
    "wall_seconds": wall,
    "cpu_seconds": cpu,
    "peak_rss_bytes": peak * 1024,
    "bytes_in": sum(pathlib.Path(file).stat().st_size for file in glob.glob(source)),
    "bytes_out": target.stat().st_size,
    "rows": rows,
}
print(json.dumps(figures))

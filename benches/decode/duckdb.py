"""DuckDB turns NDJSON into Parquet, with the columns that it finds; prints its figures, as a child of the benches does.

With "raw" as the last argument the line is one more column, as our `resource_json` is. The source is a pattern of files,
or URLs with a comma between them.
"""

import glob
import importlib.util
import json
import pathlib
import sys
import time

import duckdb

source, folder, threads, *raw = sys.argv[1:]
sources = source.split(",")
target = pathlib.Path(folder) / "duckdb.parquet"
connection = duckdb.connect(config={"threads": int(threads), "allow_unsigned_extensions": True})
if sources[0].startswith("http"):
    package = importlib.util.find_spec("duckdb_extension_httpfs").submodule_search_locations[0]
    connection.execute(f"LOAD '{next(pathlib.Path(package).rglob('httpfs.duckdb_extension'))}'")
    # One request for each file, as ours: the server of the bench answers no range that ends before the file.
    connection.execute("SET force_download = true")
wall, cpu = time.monotonic(), time.process_time()
columns = f"SELECT * FROM read_json_auto({sources}, format = 'newline_delimited')"
if raw:
    sample = f"SELECT json FROM read_ndjson_objects({sources}) LIMIT 20480"
    structure = connection.execute(f"SELECT json_group_structure(json) FROM ({sample})").fetchone()[0]
    decoded = f"json_transform(json, '{structure}')"
    columns = f"SELECT unnest({decoded}), json::VARCHAR AS resource_json FROM read_ndjson_objects({sources})"
rows = connection.execute(f"COPY ({columns}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)").fetchall()[0][0]
wall, cpu = time.monotonic() - wall, time.process_time() - cpu
status = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
figures = {
    "wall_seconds": wall,
    "cpu_seconds": cpu,
    "peak_rss_bytes": peak * 1024,
    # Over HTTP the caller knows it.
    "bytes_in": sum(pathlib.Path(file).stat().st_size for file in glob.glob(source)),
    "bytes_out": target.stat().st_size,
    "rows": rows,
}
print(json.dumps(figures))

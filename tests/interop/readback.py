"""Reads tables with engines that had no part in writing them, and compares them with the NDJSON that was served.

    readback.py LAKE DATA

LAKE is the folder of tables that `fhir-sync demo --data DATA` left. Of lines with the same id the last one counts: it
is what de-duplication leaves where no line states a version. Every engine must give the same ids and, per id, the same
bytes in resource_json.
"""

import gzip
import hashlib
import json
import pathlib
import sys

import deltalake
import duckdb
import duckdb_extension_delta
import polars


def served(data: pathlib.Path) -> dict[str, dict[str, str]]:
    """The lines by resource type and id."""
    lines: dict[str, dict[str, str]] = {}
    for path in sorted(data.glob("*.ndjson*")):
        rows = lines.setdefault(path.name.split(".")[0], {})
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                line = line.rstrip("\r\n")
                if line.strip():
                    rows[json.loads(line)["id"]] = line
    return lines


def checksum(rows: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for resource_id, text in sorted(rows):
        digest.update(hashlib.sha256(resource_id.encode() + b"\0" + text.encode()).digest())
    return digest.hexdigest()


def with_polars(table: pathlib.Path) -> list[tuple[str, str]]:
    return polars.read_delta(str(table)).select("id", "resource_json").rows()


def with_delta_rs(table: pathlib.Path) -> list[tuple[str, str]]:
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table)))
    answer = builder.execute("SELECT id, resource_json FROM t").read_all()
    columns = [polars.Series(answer.column(name)).to_list() for name in ("id", "resource_json")]
    return list(zip(*columns))


def duckdb_reader():
    folder = pathlib.Path(duckdb_extension_delta.__file__).parent
    extension = next(folder.rglob("delta.duckdb_extension"))
    connection = duckdb.connect(config={"allow_unsigned_extensions": True})
    connection.execute(f"LOAD '{extension}'")

    def read(table: pathlib.Path) -> list[tuple[str, str]]:
        return connection.execute("SELECT id, resource_json FROM delta_scan(?)", [str(table)]).fetchall()

    return read


def main(lake: pathlib.Path, data: pathlib.Path) -> int:
    engines = {"polars": with_polars, "delta-rs": with_delta_rs, "duckdb": duckdb_reader()}
    differences = 0
    rows_read = 0
    for resource_type, lines in served(data).items():
        expected = checksum(list(lines.items()))
        for name, read in engines.items():
            rows = read(lake / f"{resource_type}.parquet")
            rows_read += len(rows)
            if len(rows) != len(lines) or checksum(rows) != expected:
                differences += 1
                print(f"{resource_type}: {name} reads {len(rows)} rows, {len(lines)} are expected, or other bytes")
    print(f"{rows_read} rows read by {', '.join(engines)}: {differences} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))

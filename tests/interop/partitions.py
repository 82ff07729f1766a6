"""Reads a table that is partitioned by the year and month of a date, beside the same rows without partitions.

    partitions.py PLAIN PARTITIONED

Both are lakes of followed.sh. Polars, delta-rs and DuckDB must find the same rows in them, each row in the month that
its `__effective_start` says, and as many rows of one month whether they filter by partition or by date.
"""

import pathlib
import sys

import deltalake
import polars
import readback

ROWS = "SELECT id, resource_json{more} FROM {table}"
PARTS = ", year, month, date_part('year', __effective_start), date_part('month', __effective_start)"


def polars_rows(table: str, parts: bool, where: tuple[int, int] | None = None) -> list[tuple]:
    rows = polars.scan_delta(table)
    if where:
        rows = rows.filter((polars.col("year") == where[0]) & (polars.col("month") == where[1]))
    date = polars.col("__effective_start").dt
    of_date = [date.year().alias("of_year"), date.month().alias("of_month")]
    return rows.select("id", "resource_json", *(["year", "month", *of_date] if parts else [])).collect().rows()


def asked(table: str, parts: bool, where: tuple[int, int] | None) -> str:
    filtered = f" WHERE year = {where[0]} AND month = {where[1]}" if where else ""
    return ROWS.format(more=PARTS if parts else "", table=table) + filtered


def delta_rs_rows(table: str, parts: bool, where: tuple[int, int] | None = None) -> list[tuple]:
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(table))
    answer = builder.execute(asked("t", parts, where)).read_all()
    return list(zip(*(polars.Series(answer.column(number)).to_list() for number in range(answer.num_columns))))


def duckdb_reader():
    connection = readback.duckdb_connection()

    def rows(table: str, parts: bool, where: tuple[int, int] | None = None) -> list[tuple]:
        return connection.execute(asked(f"delta_scan('{table}')", parts, where)).fetchall()

    return rows


def agrees(name: str, rows, plain: str, partitioned: str) -> bool:
    expected = sorted(rows(plain, False))
    found = rows(partitioned, True)
    same = sorted(row[:2] for row in found) == expected
    placed = all(row[2:4] == row[4:6] for row in found)
    months = {row[2:4] for row in found}
    filtered = all(
        len(rows(partitioned, False, month)) == sum(row[4:6] == month for row in found)
        for month in sorted(months - {(None, None)})[:3]
    )
    agreed = same and placed and filtered and len(months) > 1
    print(f"{'same' if agreed else 'DIFFERENT'} {name}: {len(found)} rows in {len(months)} months")
    return agreed


def main(plain: str, partitioned: str) -> int:
    tables = [str(pathlib.Path(lake) / "Observation.parquet") for lake in (plain, partitioned)]
    engines = {"polars": polars_rows, "delta-rs": delta_rs_rows, "duckdb": duckdb_reader()}
    agreed = [agrees(name, rows, *tables) for name, rows in engines.items()]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

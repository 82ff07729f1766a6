"""Reads tables with other engines, and compares the rows with the NDJSON that the server sent.

    readback.py LAKE DATA

LAKE is the folder of tables that `fhir-sync demo --data DATA` left. Polars, delta-rs and DuckDB must return what
served.py expects.
"""

import json
import pathlib
import sys

import deltalake
import duckdb
import duckdb_extension_delta
import polars
import served

DELTA_RS = {
    "id": "SELECT id, NULL FROM t",
    "resource_json": "SELECT id, resource_json FROM t",
    "code": "SELECT id, code['coding'][1]['code'] FROM t",
    "issued": "SELECT id, CAST(issued AS BIGINT) FROM t",
    "no _extension": "SELECT id, NULL FROM t WHERE _extension IS NULL",
    "valueQuantity": "SELECT count(valueQuantity['value']), sum(valueQuantity['value']) FROM t",
    "component": """SELECT count(c['valueQuantity']['value']), sum(c['valueQuantity']['value'])
                    FROM (SELECT unnest(component) AS c FROM t)""",
}
DUCKDB = {
    "id": "SELECT id, NULL FROM delta_scan(?)",
    "resource_json": "SELECT id, resource_json FROM delta_scan(?)",
    "code": "SELECT id, code.coding[1].code FROM delta_scan(?)",
    "issued": "SELECT id, epoch_us(issued) FROM delta_scan(?)",
    "no _extension": "SELECT id, NULL FROM delta_scan(?) WHERE _extension IS NULL",
    "valueQuantity": "SELECT count(valueQuantity.value), sum(valueQuantity.value) FROM delta_scan(?)",
    "component": """SELECT count(c.valueQuantity.value), sum(c.valueQuantity.value)
                    FROM (SELECT unnest(component) AS c FROM delta_scan(?))""",
}
POLARS = {
    "id": lambda t: t.select("id", polars.lit(None)),
    "resource_json": lambda t: t.select("id", "resource_json"),
    "code": lambda t: t.select(
        "id",
        polars.col("code").struct.field("coding").list.get(0, null_on_oob=True).struct.field("code"),
    ),
    "issued": lambda t: t.select("id", polars.col("issued").dt.epoch("us")),
    "no _extension": lambda t: t.filter(polars.col("_extension").is_null()).select("id", polars.lit(None)),
    "valueQuantity": lambda t: polars_total(t.select(polars.col("valueQuantity").struct.field("value"))),
    "component": lambda t: polars_total(
        t.select("component")
        .explode("component")
        .select(polars.col("component").struct.field("valueQuantity").struct.field("value"))
    ),
}


def polars_total(values: polars.LazyFrame) -> polars.LazyFrame:
    return values.select(polars.col("value").count().alias("count"), polars.col("value").sum())


def with_polars(table: pathlib.Path, question: str) -> served.Answer:
    return POLARS[question](polars.scan_delta(str(table))).collect().rows()


def with_delta_rs(table: pathlib.Path, question: str) -> served.Answer:
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table)))
    answer = builder.execute(DELTA_RS[question]).read_all()
    columns = [polars.Series(answer.column(number)).to_list() for number in range(2)]
    return list(zip(*columns))


def duckdb_connection() -> duckdb.DuckDBPyConnection:
    folder = pathlib.Path(duckdb_extension_delta.__file__).parent
    extension = next(folder.rglob("delta.duckdb_extension"))
    connection = duckdb.connect(config={"allow_unsigned_extensions": True})
    connection.execute(f"LOAD '{extension}'")
    return connection


def duckdb_reader():
    connection = duckdb_connection()

    def read(table: pathlib.Path, question: str) -> served.Answer:
        return connection.execute(DUCKDB[question], [str(table)]).fetchall()

    return read


def schema(table: pathlib.Path) -> dict:
    return json.loads(deltalake.DeltaTable(str(table)).schema().to_json())


def main(lake: pathlib.Path, data: pathlib.Path) -> int:
    engines = {"polars": with_polars, "delta-rs": with_delta_rs, "duckdb": duckdb_reader()}
    everything = served.served(data)
    agreed = [served.compare(lake, everything, name, schema, read) for name, read in engines.items()]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))

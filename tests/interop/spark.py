"""Reads every table of a lake with Spark, and compares it with the NDJSON that was served.

    spark.py LAKE DATA
"""

import pathlib
import sys
import tempfile

import served
from session import session

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


def main(lake: pathlib.Path, data: pathlib.Path) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        spark = session(pathlib.Path(scratch))

        def schema(table: pathlib.Path) -> dict:
            return spark.read.format("delta").load(str(table)).schema.jsonValue()

        def ask(table: pathlib.Path, question: str) -> list:
            return [tuple(row) for row in spark.sql(SQL[question].format(table=table)).collect()]

        agreed = served.compare(lake, served.served(data), f"spark {spark.version}", schema, ask)
        spark.stop()
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])))

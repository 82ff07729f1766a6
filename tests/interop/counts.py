"""The rows of tables, and what a FHIR server says it has."""

import json
import pathlib
import urllib.request

import deltalake

# HAPI repeats the answer to a search for a minute, but not to those who ask for a new one.
FRESH = {"Accept": "application/fhir+json", "Cache-Control": "no-cache"}


def stored(lake: pathlib.Path, types: list[str]) -> dict[str, int]:
    """The rows of each table, as delta-rs counts them; 0 where there is none."""
    return {of: rows(lake / f"{of}.parquet") for of in types}


def rows(table: pathlib.Path) -> int:
    if not (table / "_delta_log").exists():
        return 0
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table)))
    return builder.execute("SELECT count(*) AS n FROM t").read_all().column(0)[0].as_py()


def served(base: str, of: str) -> int:
    request = urllib.request.Request(f"{base}/{of}?_summary=count", headers=FRESH)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["total"]

"""DuckDB reads the tables from the object store, with deletion vectors and after a maintenance.

Its extension for Delta reads S3 and Azure; for Google it would need keys of its S3 interface, which the stand-in lacks.
"""

import importlib
import pathlib
import urllib.parse
from collections.abc import Callable

import duckdb
import proxy
import stores
from lake import Facts, Lake, run_days

EXTENSIONS = ["httpfs", "azure", "delta"]


def connection(store: stores.Store) -> duckdb.DuckDBPyConnection:
    """Knows how to reach the store."""
    connection = duckdb.connect(config={"allow_unsigned_extensions": True})
    for name in EXTENSIONS:
        folder = pathlib.Path(importlib.import_module(f"duckdb_extension_{name}").__file__).parent
        connection.execute(f"LOAD '{next(folder.rglob(f'{name}.duckdb_extension'))}'")
    connection.execute(secret(store))
    return connection


def secret(store: stores.Store) -> str:
    if isinstance(store, stores.S3):
        secrets, host = store.secrets(), urllib.parse.urlsplit(store.url).netloc
        return f"""CREATE SECRET (TYPE s3, KEY_ID '{secrets["AWS_ACCESS_KEY_ID"]}', REGION 'us-east-1', USE_SSL false,
                   SECRET '{secrets["AWS_SECRET_ACCESS_KEY"]}', ENDPOINT '{host}', URL_STYLE 'path')"""
    # The extension knows the emulator's account, and asks at this port whatever is said here.
    emulator = proxy.Proxy(store.url, store.bucket_path, port=10_000)
    parts = {"DefaultEndpointsProtocol": "http", "AccountName": store.ACCOUNT, "AccountKey": store.KEY,
             "BlobEndpoint": f"{emulator.url}/{store.ACCOUNT}"}
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    return f"CREATE SECRET (TYPE azure, CONNECTION_STRING '{text}')"


def every(named: Callable[[str], Lake], expected: Facts) -> bool:
    lake = named("by-duckdb")
    if isinstance(lake.store, stores.Google):
        return lake.end("DuckDB does not read this store")
    config = lake.program(lake.store.url, "direct")
    run_days(lake, lambda command, settings: lake.run(config, command, settings), expected)
    reader = connection(lake.store)
    for resource_type in ["Patient", "Observation"]:
        table = lake.store.root(lake.table(f"{resource_type}.parquet"))
        rows = reader.execute("SELECT id, resource_json FROM delta_scan(?)", [table]).fetchall()
        lake.expect(f"DuckDB reads {resource_type}", sorted(rows) == sorted(lake.lines(resource_type).items()))
    return lake.end("read by DuckDB")

"""fhir-sync on an object store that runs on this machine.

    on_store.py STORE SERVER PROGRAM [PART...]

STORE is s3, versity, azure or gcs; SERVER the program of its server (stores.py). PROGRAM is fhir-sync. PART is one of
those below; without any, all of them run.
"""

import pathlib
import sys
import tempfile

import by_duckdb
import commits
import lake
import machines
import outages
import pods
import stores
import whole

PARTS = {"whole": whole.every, "commits": commits.every, "outages": outages.every, "pods": pods.every,
         "machines": machines.every, "duckdb": by_duckdb.every}


def main(name: str, server: str, program: str, *parts: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        store = stores.start(name, folder, server)

        def named(lake_name: str) -> lake.Lake:
            return lake.Lake(program, store, lake_name, folder)

        try:
            agreed, expected = commits.undisturbed(named("undisturbed"))
            # A list, so that a part runs also where one before it failed.
            agreed = agreed and all([PARTS[part](named, expected) for part in parts or PARTS])
        finally:
            store.stop()
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

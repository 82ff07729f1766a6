"""The life of a lake on an object store, from the first check to a rebuild, with every command that uses the store.

A load that is larger than one part of an upload, days of changes and deletions into a table with partitions, a line
that is not a resource, a full refresh that removes what the server forgot, each step of a maintenance, a lost state
file, a rebuild. After each, delta-rs must read what the server has.
"""

import json
import secrets
import urllib.parse
from collections.abc import Callable

import lake as lakes
import stores
from lake import Lake

# Of a text that cannot be compressed well: more than one part (10 MiB) in one table.
LARGE, LARGE_BYTES = 1600, 16 * 1024
DAYS = 9
MONTHS = 2
TABLES = """
[tables.Observation]
partition_by = ["year", "month"]
partition_date = "effective"
"""
# What left the tables goes at once.
AT_ONCE = {"MAINTENANCE__VACUUM_RETENTION": "0s", "MAINTENANCE__LOG_RETENTION": "0s"}
PARTIAL = 3


def observe(lake: Lake, number: int, text: str) -> None:
    effective = f"2025-{number % MONTHS + 1:02}-03T10:00:00Z"
    lake.server.put("Observation", f"o-{number}", status="final", effectiveDateTime=effective, valueString=text)


def equal(lake: Lake, what: str) -> None:
    for resource_type in ["Patient", "Observation"]:
        lake.check_rows(what, resource_type)


def first_load(lake: Lake, config, entries: list) -> None:
    output = lake.succeeds(config, "check --online")
    lake.expect(f"the store is checked: {output}", "tables" in output or "store" in output)
    for number in range(lakes.PATIENTS):
        lake.server.put("Patient", f"p-{number}", gender="female", text={"status": "generated", "div": "<div/>"})
    for number in range(LARGE):
        observe(lake, number, secrets.token_hex(LARGE_BYTES // 2))
    lake.succeeds(config, "sync")
    equal(lake, "the first load")
    uploaded_in_parts(lake, entries)
    log = lake.store.log(lake.table("Observation.parquet"))
    adds = [action["add"] for commit in log for action in commit if "add" in action]
    partitions = {json.dumps(add["partitionValues"], sort_keys=True) for add in adds}
    lake.expect(f"there are {MONTHS} partitions: {partitions}", len(partitions) == MONTHS)


def uploaded_in_parts(lake: Lake, entries: list) -> None:
    parts = [(entry.key, entry.sent) for entry in entries if entry.method == "PUT" and entry.kind == "data"]
    lake.expect(f"a file was uploaded in parts: {parts}", len(parts) > len({key for key, _ in parts}))


def days(lake: Lake, config) -> None:
    for day in range(DAYS):
        lake.server.advance(days=1)
        for number in range(day, lakes.PATIENTS, 7):
            lake.server.put("Patient", f"p-{number}", gender="other")
        for number in range(day, LARGE, 100):
            observe(lake, number, f"day {day}")
        lake.server.delete("Observation", f"o-{LARGE - 1 - day}")
        lake.server.put("Patient", f"new-{day}", gender="male")
        lake.server.advance(hours=1)
        lake.succeeds(config, "sync")
    equal(lake, f"{DAYS} days")


def quarantined(lake: Lake, config) -> None:
    """A line without an id is quarantined, is shown, and its correction becomes a row."""
    lake.server.advance(days=1)
    lake.server.put("Patient", "without-id", gender="female")
    whole = lake.server.lines["Patient", "without-id"]
    lake.server.lines["Patient", "without-id"] = whole.replace('"id": "without-id", ', "")
    code, output = lake.run(config, "sync")
    lake.expect(f"a line that is not a resource makes the run partial: {code} {output}", code == PARTIAL)
    rows = lake.store.rows(lake.table("_fhir_sync/quarantine"), "SELECT * FROM t")
    lake.expect(f"it is quarantined: {len(rows)}", len(rows) == 1)
    [line] = json.loads(lake.succeeds(config, "quarantine list --json"))
    corrected = lake.folder / "corrected.json"
    corrected.write_text(whole)
    lake.succeeds(config, f"quarantine replay {line['id']} --file {corrected}")
    lake.server.lines["Patient", "without-id"] = whole
    equal(lake, "a corrected line")


def refreshed(lake: Lake, config) -> None:
    """What the server no longer has, and never reported, is removed by a full refresh."""
    lake.server.advance(days=1)
    lake.server.delete_silently("Patient", "new-0")
    lake.server.delete_silently("Observation", "o-7")
    lake.succeeds(config, "sync")
    lake.server.advance(hours=1)
    lake.succeeds(config, "sync --full-refresh")
    equal(lake, "a full refresh")


def maintained(lake: Lake, config) -> None:
    for table in ["Patient.parquet", "Observation.parquet"]:
        # Otherwise the log keeps commits for a month.
        set_property(lake, table, "delta.logRetentionDuration", "interval 0 seconds")
    before = objects(lake)
    # The clock of the server is months behind, and tables ask to keep files for a week.
    lake.succeeds(config, "maintain --force --dry-run", AT_ONCE)
    lake.expect("a dry run changes nothing", objects(lake) == before)
    lake.succeeds(config, "maintain --force", AT_ONCE)
    equal(lake, "a maintenance")
    # The first one needs what it replaced: its cutoff is its beginning.
    lake.succeeds(config, "maintain --force", AT_ONCE)
    equal(lake, "a second maintenance")
    for table in ["Patient.parquet", "Observation.parquet"]:
        of_log = lake.store.keys(f"{lake.table(table)}/_delta_log/")
        lake.expect(f"{table} has a checkpoint: {of_log}", any(key.endswith(".parquet") for key in of_log))
        first = f"{lake.table(table)}/_delta_log/{0:020}.json"
        lake.expect(f"the log of {table} is cleaned: {of_log}", first not in of_log)
        uris = lake.store.table(lake.table(table)).file_uris()
        named = {lake.table(table) + urllib.parse.unquote(uri.split(lake.table(table), 1)[1]) for uri in uris}
        stored = {key for key in objects(lake, table) if key.endswith(".parquet") and "/_delta_log/" not in key}
        lake.expect(f"the files of {table} are those that its log names: {stored ^ named}", stored == named)
    lake.server.advance(days=1)
    observe(lake, 1, "after a maintenance")
    lake.succeeds(config, "sync")
    equal(lake, "the day after a maintenance")


def objects(lake: Lake, table: str = "") -> list[str]:
    return [key for key in lake.store.keys(lake.table(table)) if not key.endswith("lease.json")]


def set_property(lake: Lake, table: str, name: str, value: str) -> None:
    """Another writer's commit. delta-rs would switch on table features beside it."""
    log = lake.store.log(lake.table(table))
    metadata = [action["metaData"] for commit in log for action in commit if "metaData" in action][-1]
    metadata["configuration"][name] = value
    info = {"operation": "SET TBLPROPERTIES", "operationParameters": {}, "timestamp": 1700000000000}
    commit = "\n".join(json.dumps(action) for action in [{"commitInfo": info}, {"metaData": metadata}])
    lake.store.create(f"{lake.table(table)}/_delta_log/{len(log):020}.json", commit.encode())


def recovered(lake: Lake, config) -> None:
    """The state file is lost: the tables know their watermarks. Then the rows are rebuilt, and all agree."""
    (lake.folder / "whole.json").unlink()
    lake.server.advance(days=1)
    observe(lake, 2, "without a state file")
    lake.succeeds(config, "sync")
    equal(lake, "a lost state file")
    lake.succeeds(config, "maintain --rebuild Patient Observation")
    equal(lake, "a rebuild")
    lake.succeeds(config, "verify")
    runs = lake.succeeds(config, "runs --json")
    lake.expect(f"the ledger has the runs: {len(runs.splitlines())}", "Observation" in runs)
    rows = lake.store.rows(lake.table(lakes.LEDGER), "SELECT run, resource_type, \"end\" FROM t")
    lake.expect(f"delta-rs reads the ledger: {len(rows)}", len(rows) > 2 * DAYS)
    for command in ["status", "views --dialect duckdb", "check --online"]:
        lake.succeeds(config, command)


def every(named: Callable[[str], Lake], _: lakes.Facts) -> bool:
    lake = named("whole")
    proxied = lake.store.proxied()
    config = lake.program(proxied.url, "whole", TABLES)
    first_load(lake, config, proxied.entries)
    for part in [days, quarantined, refreshed, maintained, recovered]:
        # What follows builds on what was before.
        if lake.differences == 0:
            part(lake, config)
    if isinstance(lake.store, stores.S3):
        lake.expect(f"no upload is left open: {lake.store.uploads()}", lake.store.uploads() == [])
    return lake.end(f"{len(proxied.entries)} requests")

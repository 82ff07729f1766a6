"""Makes the views that a program prints, in DuckDB, and compares them with the NDJSON lines that the tables keep.

    views.py LAKE PROGRAM

Every view whose table LAKE has must have a row per resource (or item), and each column as often a value as the lines
say.
"""

import pathlib
import re
import subprocess
import sys

import readback

# For a column of a view: when a line has a value for it.
FILLED = {
    "patient": {
        "id": "true",
        "family": "(j->'$.name[*].family') <> []",
        "gender": "(j->'$.gender') IS NOT NULL",
        "birth_date": "(j->'$.birthDate') IS NOT NULL",
        "race": "contains((j->>'$.extension'), '/us-core-race\"')",
        "ethnicity": "contains((j->>'$.extension'), '/us-core-ethnicity\"')",
        "mrn": "list_contains((j->>'$.identifier[*].type.coding[*].code'), 'MR')",
        "city": "(j->'$.address[*].city') <> []",
        "deceased": "coalesce((j->'$.deceasedBoolean'), (j->'$.deceasedDateTime')) IS NOT NULL",
    },
    "encounter": {
        "patient_id": "contains((j->>'$.subject.reference'), 'Patient/')",
        "class": "(j->'$.class.code') IS NOT NULL",
        "type_code": "(j->'$.type[0].coding[0].code') IS NOT NULL",
        "period_start": "(j->'$.period.start') IS NOT NULL",
    },
    "condition": {
        "patient_id": "contains((j->>'$.subject.reference'), 'Patient/')",
        "encounter_id": "contains((j->>'$.encounter.reference'), 'Encounter/')",
        "code": "(j->'$.code.coding[0].code') IS NOT NULL",
        "clinical_status": "(j->'$.clinicalStatus.coding[0].code') IS NOT NULL",
        "recorded": "(j->'$.recordedDate') IS NOT NULL",
    },
    "observation": {
        "patient_id": "contains((j->>'$.subject.reference'), 'Patient/')",
        "code": "(j->'$.code.coding[0].code') IS NOT NULL",
        "category": "(j->'$.category[0].coding[0].code') IS NOT NULL",
        "effective_start": "coalesce((j->'$.effectiveDateTime'), (j->'$.effectiveInstant'), (j->'$.effectivePeriod.start')) IS NOT NULL",
        "value": "coalesce((j->'$.valueQuantity.value'), (j->'$.valueInteger')) IS NOT NULL",
        "value_code": "(j->'$.valueCodeableConcept.coding[0].code') IS NOT NULL",
    },
    "observation_component": {
        "code": "(j->'$.code.coding[0].code') IS NOT NULL",
        "value": "coalesce((j->'$.valueQuantity.value'), (j->'$.valueInteger')) IS NOT NULL",
    },
    "medication_request": {
        "patient_id": "contains((j->>'$.subject.reference'), 'Patient/')",
        "medication_code": "(j->'$.medicationCodeableConcept.coding[0].code') IS NOT NULL",
        "authored": "(j->'$.authoredOn') IS NOT NULL",
    },
}
STATEMENT = re.compile(r"CREATE OR REPLACE VIEW (\w+) AS .*?/(\w+)\.parquet'.*?;\n", re.DOTALL)


def differences(connection, lake: pathlib.Path, view: str, resource_type: str) -> list[str]:
    lines = "SELECT resource_json::JSON AS j FROM delta_scan($table)"
    if view.endswith("_component"):
        lines = f"SELECT unnest(j->'$.component[*]') AS j FROM ({lines})"
    filled = FILLED[view]
    expected = ", ".join(f"count(*) FILTER ({condition})" for condition in filled.values())
    table = {"table": str(lake / f"{resource_type}.parquet")}
    expected = connection.execute(f"SELECT count(*), {expected} FROM ({lines})", table).fetchone()
    found = connection.execute(f"SELECT count(*), {', '.join(f'count({column})' for column in filled)} FROM {view}").fetchone()
    # Every column once, also those that nothing is compared with.
    every = connection.execute(f"SELECT count(COLUMNS(*)) FROM {view}").fetchone()
    print(f"views: {view}: {found[0]} rows, {sum(map(bool, every))} of {len(every)} columns filled")
    compared = zip(["rows", *filled], expected, found)
    return [f"{view}.{name}: {there} in the lines, {here} in the view" for name, there, here in compared if there != here]


def main(lake: pathlib.Path, program: str) -> int:
    command = [program, "views", "--dialect", "duckdb", "--root", str(lake)]
    statements = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    connection = readback.duckdb_connection()
    different = []
    made = set()
    for statement in STATEMENT.finditer(statements):
        view, resource_type = statement.groups()
        made.add(view)
        if (lake / f"{resource_type}.parquet").exists():
            connection.execute(statement.group())
            different += differences(connection, lake, view, resource_type)
    if made != FILLED.keys():
        different.append(f"views: {sorted(made ^ FILLED.keys())} are printed or compared, not both")
    print("\n".join(different), end="\n" if different else "")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]))

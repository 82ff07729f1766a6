"""Asks Pathling the same questions of our tables and of tables that it made itself from the same lines.

    pathling.py LAKE DATA [OWN]

LAKE is ours, DATA the NDJSON that was served. Pathling's own tables are left in OWN where it is given. Questions whose
columns our tables do not have are named and not asked.
"""

import decimal
import json
import pathlib
import sys
import tempfile

# This file has the name of the package that it imports.
sys.path.append(sys.path.pop(0))

import served  # noqa: E402
from pathling import PathlingContext  # noqa: E402
from py4j.protocol import Py4JJavaError  # noqa: E402
from pyspark.errors import PySparkException  # noqa: E402
from session import session  # noqa: E402

# The errors of a question about a table that Pathling cannot decode. The other questions are still asked.
ERRORS = (Py4JJavaError, PySparkException)

CODING = [{"name": name, "path": name} for name in ("system", "code", "display")]
ID = {"column": [{"name": "id", "path": "id"}]}
RACE = "extension('http://hl7.org/fhir/us/core/StructureDefinition/us-core-race').extension('ombCategory')"
GEOLOCATION = "address.extension('http://hl7.org/fhir/StructureDefinition/geolocation').extension('latitude')"


def each(path: str, *columns: tuple[str, str]) -> list[dict]:
    return [ID, {"forEach": path, "column": [{"name": name, "path": column} for name, column in columns]}]


def only(path: str) -> dict:
    return {"select": [ID], "where": [{"path": path}]}


# Per question: the resource type, the columns that it needs, the view.
VIEWS = {
    "female": ("Patient", ["gender"], only("gender = 'female'")),
    "born before 1975": ("Patient", ["birthDate"], only("birthDate < @1975-01-01")),
    "family names": ("Patient", ["name"], {"select": each("name", ("family", "family"), ("given", "given.first()"))}),
    "race": ("Patient", ["_extension"], {"select": each(RACE, ("code", "value.ofType(Coding).code"))}),
    "geolocation": ("Patient", ["_extension"], {"select": each(GEOLOCATION, ("value", "value.ofType(decimal)"))}),
    "codes": ("Observation", ["code"], {"select": [ID, {"forEach": "code.coding", "column": CODING}]}),
    "values": (
        "Observation",
        ["valueQuantity"],
        {"select": each("value.ofType(Quantity)", ("value", "value"), ("unit", "unit"), ("code", "code"))},
    ),
    "component values": (
        "Observation",
        ["component"],
        {
            "select": each(
                "component", ("code", "code.coding.first().code"), ("value", "value.ofType(Quantity).value")
            )
        },
    ),
    "more than 5 mg/dL": ("Observation", ["valueQuantity"], only("value.ofType(Quantity) > 5 'mg/dL'")),
    "at most 1.6 m": ("Observation", ["valueQuantity"], only("value.ofType(Quantity) <= 1.6 'm'")),
    "warmer than 310 K": ("Observation", ["valueQuantity"], only("value.ofType(Quantity) > 310 'K'")),
    "issued since 2015": ("Observation", ["issued"], only("issued > @2015-01-01T00:00:00Z")),
    "subjects": (
        "Observation",
        ["subject"],
        {"select": [ID, {"column": [{"name": "patient", "path": "subject.getReferenceKey(Patient)"}]}]},
    ),
}
# HAPI writes these in a zone of its own choice.
INSTANTS = {"issued", "lastUpdated"}
# Neither Pathling's tables nor therefore its answer has them; names that begin with _ are a primitive's extensions.
NOT_ENCODED = {"contained", "modifierExtension"}
# Values of other types in an extension are not there either.
OPEN_TYPES = (
    "Boolean Code Date DateTime Decimal Integer String Coding CodeableConcept Address Identifier Reference".split()
)
WRITTEN_BACK = ("Patient", "Observation")


def main(lake: pathlib.Path, data: pathlib.Path, kept: pathlib.Path | None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        spark = session(scratch)
        context = PathlingContext.create(spark, enable_extensions=True, enable_terminology=False)
        lines = served.served(data)
        own = own_tables(context, lines, scratch, kept or scratch / "own")
        ours = context.read.delta(str(lake))
        print(f"pathling {context.version()}: its own tables from the same lines, then ours")
        missing = lines.keys() - set(ours.resource_types())
        for resource_type in missing:
            print(f"  {resource_type}: Pathling finds no table for its {len(lines.pop(resource_type))} lines")
        agreed = [
            not missing,
            counts_agree(ours, own, lines),
            views_agree(ours, own, lines),
            written_back_agrees(context, ours, own, lines, scratch),
        ]
        spark.stop()
    return 0 if all(agreed) else 1


def own_tables(context, lines: dict[str, served.Lines], scratch: pathlib.Path, folder: pathlib.Path):
    ndjson = scratch / "ndjson"
    ndjson.mkdir()
    for resource_type, rows in lines.items():
        text = "".join(f"{line}\n" for line in rows.values())
        (ndjson / f"{resource_type}.ndjson").write_text(text, encoding="utf-8")
    context.read.ndjson(str(ndjson)).write.delta(str(folder))
    return context.read.delta(str(folder))


def counts_agree(ours, own, lines: dict[str, served.Lines]) -> bool:
    agreed = True
    for resource_type, rows in lines.items():
        counts = (own.read(resource_type).count(), ours.read(resource_type).count())
        if counts != (len(rows), len(rows)):
            agreed = False
            print(f"  {resource_type}: {len(rows)} lines, {counts[0]} rows in its own table, {counts[1]} in ours")
    print(f"  {len(lines)} types counted: {'as many rows as lines' if agreed else 'DIFFERENT'}")
    return agreed


def views_agree(ours, own, lines: dict[str, served.Lines]) -> bool:
    agreed = True
    for question, (resource_type, needed, view) in VIEWS.items():
        if resource_type not in lines:
            continue
        expected = rows_of(own, resource_type, view)
        missing = set(needed) - set(ours.read(resource_type).columns)
        if missing:
            print(f"  {question}: {len(expected)}; not asked of ours, which has no {', '.join(missing)}")
            continue
        try:
            answer = rows_of(ours, resource_type, view)
            same = answer == expected
            result = "the same" if same else "DIFFERENT: " + served.difference(answer, expected)
        except ERRORS as error:
            same, result = False, f"FAILED: {cause(error)}"
        agreed &= same
        print(f"  {question}: {len(expected)}; {result}{'' if expected else ' (nothing to find in these lines)'}")
    return agreed


def rows_of(source, resource_type: str, view: dict) -> served.Answer:
    rows = source.view(resource_type, **view).collect()
    return sorted((tuple(None if value is None else str(value) for value in row) for row in rows), key=repr)


def written_back_agrees(context, ours, own, lines: dict[str, served.Lines], scratch: pathlib.Path) -> bool:
    agreed = True
    for whose, source in (("its own", own), ("ours", ours)):
        for resource_type in WRITTEN_BACK:
            if resource_type not in lines:
                continue
            if "id_versioned" not in source.read(resource_type).columns:
                print(f"  {resource_type}.ndjson from {whose}: not asked, it has no id_versioned")
                continue
            try:
                written = written_back(context, source, resource_type, scratch / whose.replace(" ", "-") / resource_type)
            except ERRORS as error:
                agreed = False
                print(f"  {resource_type}.ndjson from {whose}: FAILED: {cause(error)}")
                continue
            expected = {resource_id: normal(line) for resource_id, line in lines[resource_type].items()}
            agreed &= same_resources(whose, resource_type, written, expected)
    return agreed


def written_back(context, source, resource_type: str, folder: pathlib.Path) -> dict[str, dict]:
    context.read.datasets({resource_type: source.read(resource_type)}).write.ndjson(str(folder))
    resources = {}
    for path in sorted(folder.rglob("*.ndjson")):
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                resource = normal(line)
                resources[resource["id"]] = resource
    return resources


def cause(error: Exception) -> str:
    """The innermost cause of a Java error, on one line."""
    lines = str(error).splitlines()
    return ([line for line in lines if line.startswith("Caused by: ")] or lines)[-1][:200]


def same_resources(whose: str, resource_type: str, written: dict[str, dict], expected: dict[str, dict]) -> bool:
    ids = expected.keys() | written.keys()
    wrong = sorted(resource_id for resource_id in ids if written.get(resource_id) != expected.get(resource_id))
    print(f"  {resource_type}.ndjson from {whose}: {len(written)} resources, {len(expected)} lines, {len(wrong)} differ")
    for resource_id in wrong[:3]:
        print(f"    {resource_id}: {where(expected.get(resource_id), written.get(resource_id), resource_type)}")
    return not wrong


def normal(line: str) -> dict:
    """The resource as its typed columns can hold it."""
    return held(json.loads(line, parse_float=decimal.Decimal), "")


def held(value, name: str):
    if isinstance(value, dict):
        children = {key: held(child, key) for key, child in value.items() if is_held(key, name)}
        return {key: child for key, child in children.items() if child not in ({}, [])}
    if isinstance(value, list):
        return [held(child, name) for child in value]
    if isinstance(value, decimal.Decimal):
        return value.quantize(decimal.Decimal("0.000001"), served.ROUNDING)
    if isinstance(value, str) and name in INSTANTS:
        return served.microseconds(value)
    return value


def is_held(key: str, parent: str) -> bool:
    if parent == "extension" and key.startswith("value"):
        return key.removeprefix("value") in OPEN_TYPES
    return key not in NOT_ENCODED and not key.startswith("_")


def where(expected, written, path: str) -> str:
    """The first place where the two differ."""
    if isinstance(expected, dict) and isinstance(written, dict):
        pairs = [(f"{path}.{key}", expected.get(key), written.get(key)) for key in {**expected, **written}]
    elif isinstance(expected, list) and isinstance(written, list) and len(expected) == len(written):
        pairs = [(f"{path}[{number}]", *pair) for number, pair in enumerate(zip(expected, written))]
    else:
        return f"{path} is {expected!r:.80}, written back as {written!r:.80}"
    return next((where(left, right, place) for place, left, right in pairs if left != right), "the same")


if __name__ == "__main__":
    arguments = [pathlib.Path(argument).resolve() for argument in sys.argv[1:]]
    sys.exit(main(arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None))

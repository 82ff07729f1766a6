"""What the server sent, and what every engine must return from it.

Of lines with the same id the last one counts: it is what de-duplication leaves where no line states a version. An
answer is a list of pairs of texts, in any order; which questions a table can be asked is decided by its schema, as the
Delta log states it.
"""

import dataclasses
import datetime
import decimal
import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Callable

Answer = list[tuple[str | None, str | None]]
Lines = dict[str, str]

decimal.getcontext().prec = 76
# Ours. Pathling and Spark round ties away from zero: a line with a tie (0.0000005) is answered otherwise by its own
# tables.
ROUNDING = decimal.ROUND_HALF_UP


def served(data: pathlib.Path) -> dict[str, Lines]:
    """The lines by resource type and id."""
    lines: dict[str, Lines] = {}
    for path in sorted(data.glob("*.ndjson*")):
        rows = lines.setdefault(path.name.split(".")[0], {})
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                line = line.rstrip("\r\n")
                if line.strip():
                    rows[json.loads(line)["id"]] = line
    return lines


def compare(lake: pathlib.Path, everything: dict[str, Lines], engine: str, schema: Callable, ask: Callable) -> bool:
    """Asks every table every question that its columns answer, and reports where the answer of the engine differs.

    `schema(table)` is the schema in the JSON form of the Delta log, `ask(table, question)` the engine's answer.
    """
    asked: dict[str, int] = {}
    differences = 0
    for resource_type, lines in everything.items():
        table = lake / f"{resource_type}.parquet"
        if not (table / "_delta_log").exists():
            differences += 1
            print(f"{resource_type}: there is no table for its {len(lines)} lines")
            continue
        for question in questions(schema(table)):
            answer, expected = question.text(ask(table, question.name)), question.expected(lines)
            asked[question.name] = asked.get(question.name, 0) + len(answer)
            if checksum(answer) != checksum(expected):
                differences += 1
                print(f"{resource_type}: {engine} answers {question.name} otherwise: {difference(answer, expected)}")
    counts = ", ".join(f"{name} {rows}" for name, rows in asked.items())
    print(f"{engine}: rows of answers: {counts}: {differences} differences")
    return differences == 0


@dataclasses.dataclass
class Question:
    """`name` is what the engines know it by; `text` makes the answer of an engine comparable."""

    name: str
    expected: Callable[[Lines], Answer]
    text: Callable[[list], Answer] = list


def questions(schema: dict) -> list[Question]:
    columns = {field["name"]: field["type"] for field in schema["fields"]}
    asked = [Question("id", lambda lines: [(resource_id, None) for resource_id in lines])]
    if "resource_json" in columns:
        asked.append(Question("resource_json", lambda lines: list(lines.items())))
    if "coding" in members(columns.get("code")):
        asked.append(Question("code", codes))
    if value := members(columns.get("valueQuantity")).get("value"):
        asked.append(Question("valueQuantity", lambda lines: total(lines, quantities, value), totalled))
    if columns.get("issued") == "timestamp":
        asked.append(Question("issued", issued, numbers_as_text))
    # Pathling's decoder fails on NULL where nothing is extended: it wants an empty map.
    if "_extension" in columns:
        asked.append(Question("no _extension", lambda lines: []))
    component = members(members(columns.get("component")).get("valueQuantity"))
    if value := component.get("value"):
        asked.append(Question("component", lambda lines: total(lines, component_quantities, value), totalled))
    return asked


def members(column) -> dict:
    """The fields of a struct or of a list of structs; none of anything else."""
    if isinstance(column, dict) and column["type"] == "array":
        column = column["elementType"]
    if isinstance(column, dict) and column["type"] == "struct":
        return {field["name"]: field["type"] for field in column["fields"]}
    return {}


def codes(lines: Lines) -> Answer:
    """code.coding[0].code of each resource."""
    answer = []
    for resource_id, line in lines.items():
        coding = (json.loads(line).get("code") or {}).get("coding") or [{}]
        answer.append((resource_id, coding[0].get("code")))
    return answer


def issued(lines: Lines) -> Answer:
    """The instants, in microseconds since 1970."""
    instants = ((resource_id, json.loads(line).get("issued")) for resource_id, line in lines.items())
    return [(resource_id, instant and str(microseconds(instant))) for resource_id, instant in instants]


def numbers_as_text(rows: list) -> Answer:
    return [(resource_id, None if number is None else str(number)) for resource_id, number in rows]


def total(lines: Lines, values: Callable, decimal_type: str) -> Answer:
    """How many values, and their sum, each rounded as the column rounds: half-even, NULL where it does not fit."""
    precision, scale = (int(number) for number in re.findall(r"\d+", decimal_type))
    kept = []
    for line in lines.values():
        for value in values(json.loads(line, parse_float=decimal.Decimal)):
            rounded = decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-scale), ROUNDING)
            if abs(rounded) < decimal.Decimal(10) ** (precision - scale):
                kept.append(rounded)
    return totalled([(len(kept), sum(kept))])


def totalled(rows: list) -> Answer:
    """A sum over no rows is NULL in SQL and 0 elsewhere."""
    return [(str(count), format(decimal.Decimal(summed or 0).normalize(), "f")) for count, summed in rows]


def quantities(resource: dict) -> list:
    value = (resource.get("valueQuantity") or {}).get("value")
    return [value] if isinstance(value, int | decimal.Decimal) and not isinstance(value, bool) else []


def component_quantities(resource: dict) -> list:
    return [value for component in resource.get("component") or [] for value in quantities(component)]


def checksum(answer: Answer) -> str:
    digest = hashlib.sha256()
    for pair in sorted(answer, key=repr):
        digest.update(hashlib.sha256(repr(pair).encode()).digest())
    return digest.hexdigest()


def difference(answer: Answer, expected: Answer) -> str:
    """One answer each way, shortened: enough to look for the row."""
    missing, unexpected = set(expected) - set(answer), set(answer) - set(expected)
    examples = [repr(min(pairs, key=repr))[:200] for pairs in (missing, unexpected) if pairs] or ["rows are doubled"]
    counts = f"{len(answer)} rows, {len(expected)} are expected; {len(missing)} missing, {len(unexpected)} unexpected"
    return f"{counts}: {', '.join(examples)}"


def microseconds(instant: str) -> int:
    """Since 1970, of a FHIR instant."""
    parsed = datetime.datetime.fromisoformat(instant)
    return (parsed - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)

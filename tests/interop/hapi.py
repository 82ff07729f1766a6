"""Syncs from a HAPI FHIR server, which it fills and changes.

    hapi.py PROGRAM BASE [TYPE…]

TYPE is a further type, of which somebody has loaded resources before.
Each step says what it did, how long it took, and whether the tables have as many rows as the server counts.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import counts
import deltalake
from tls_proxy import Proxy

TYPES = ["AllergyIntolerance", "Condition", "Observation", "Patient"]
PATIENTS = 500
FHIR = "application/fhir+json"


def call(base: str, method: str, path: str, body: dict | None = None) -> None:
    data = json.dumps(body).encode() if body else None
    headers = {"Content-Type": FHIR, "Accept": FHIR, "Prefer": "return=minimal"}
    request = urllib.request.Request(f"{base}/{path}".rstrip("/"), method=method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        response.read()


def put(base: str, resources: list[dict]) -> None:
    """All of them, a hundred in a transaction."""
    for begin in range(0, len(resources), 100):
        entries = [
            {"resource": of, "request": {"method": "PUT", "url": f"{of['resourceType']}/{of['id']}"}}
            for of in resources[begin : begin + 100]
        ]
        call(base, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})


def coding(code: str) -> dict:
    return {"coding": [{"system": "http://snomed.info/sct", "code": code}]}


def patient(number: int, **more) -> dict:
    names = [{"family": f"Family{number}"}]
    return {"resourceType": "Patient", "id": f"fs-p{number}", "name": names, "birthDate": "1970-01-01"} | more


def of_patient(resource_type: str, prefix: str, number: int, **more) -> dict:
    of = {"reference": f"Patient/fs-p{number % PATIENTS}"}
    reference = {"patient": of} if resource_type == "AllergyIntolerance" else {"subject": of}
    return {"resourceType": resource_type, "id": f"fs-{prefix}{number}", "code": coding("271649006")} | reference | more


def condition(number: int, **more) -> dict:
    return of_patient("Condition", "c", number, **more)


def observation(number: int) -> dict:
    return of_patient("Observation", "o", number, status="final", valueInteger=number)


def allergy(number: int, **more) -> dict:
    return of_patient("AllergyIntolerance", "a", number, **more)


def resources() -> list[dict]:
    patients = [patient(number) for number in range(PATIENTS)]
    others = [make(number) for make in (condition, allergy) for number in range(PATIENTS)]
    return patients + others + [observation(number) for number in range(4 * PATIENTS)]


class Site:
    """A configuration with its own state and tables."""

    def __init__(self, program: str, folder: pathlib.Path, base: str, server: str = "", export: str = ""):
        folder.mkdir()
        self.lake, self.state = folder / "lake", folder / "state.json"
        self.command = [program, "sync", "--config", str(folder / "fhir-sync.toml")]
        (folder / "fhir-sync.toml").write_text(f"""
[server]
url = "{base}"
poll = {{ min_interval = "1s", max_interval = "10s" }}
{server}
[tables]
root = "{self.lake}"
[state]
file = "{self.state}"
[[export]]
name = "all"
types = {json.dumps(TYPES)}
incremental = "0 3 * * *"
{export}
""")

    def sync(self, *options: str) -> dict:
        """The report of a sync that must be complete."""
        command = [*self.command, "--json", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        if ended.returncode != 0:
            print(ended.stdout, ended.stderr, sep="\n", file=sys.stderr)
            raise SystemExit(f"exit code {ended.returncode}")
        return json.loads(ended.stdout.splitlines()[-1])

    def killed_while_it_waits(self) -> None:
        """Starts a sync, and kills it when the server works on its export."""
        with subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while "export-poll-status" not in (self.state.read_text() if self.state.exists() else ""):
                if process.poll() is not None:
                    raise SystemExit("the sync ended before it could be killed")
                time.sleep(0.02)
            process.kill()

    def where(self, of: str, condition: str) -> int:
        table = deltalake.DeltaTable(str(self.lake / f"{of}.parquet"))
        query = f"SELECT count(*) AS n FROM t WHERE {condition}"
        return deltalake.QueryBuilder().register("t", table).execute(query).read_all().column(0)[0].as_py()


class Steps:
    def __init__(self, base: str):
        self.base, self.differs = base, 0
        self.began = time.monotonic()

    def compare(self, name: str, found, expected) -> None:
        seconds = time.monotonic() - self.began
        verdict = "ok " if found == expected else "NOT"
        self.differs += found != expected
        short = f"{sum(found.values())} rows of {len(found)} types" if isinstance(found, dict) else found
        print(f"{verdict} {name}: {seconds:.0f} s, {short}", flush=True)
        if found != expected:
            print(f"{found}\ninstead of {expected}", file=sys.stderr)
        self.began = time.monotonic()

    def as_the_server_counts(self, name: str, site: Site) -> None:
        self.compare(name, counts.stored(site.lake, TYPES), {of: counts.served(self.base, of) for of in TYPES})


def change(base: str) -> None:
    """20 patients and 30 conditions updated, 20 patients created, 11 allergies deleted and one of them put again."""
    put(base, [patient(number, birthDate="1901-01-01") for number in range(20)])
    put(base, [condition(number, note=[{"text": "changed"}]) for number in range(30)])
    put(base, [patient(PATIENTS + number) for number in range(20)])
    for number in range(11):
        call(base, "DELETE", f"AllergyIntolerance/fs-a{number}")
    put(base, [allergy(0, note=[{"text": "again"}])])


def group(base: str, members: range) -> None:
    member = [{"entity": {"reference": f"Patient/fs-p{number}"}} for number in members]
    put(base, [{"resourceType": "Group", "id": "fs-g", "type": "person", "actual": True, "member": member}])


def main(program: str, base: str, *more: str) -> int:
    TYPES.extend(of for of in more if of not in TYPES)
    steps = Steps(base)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        put(base, resources())
        steps.compare("the server is filled", counts.served(base, "Observation") >= 4 * PATIENTS, True)
        first = Site(program, folder / "first", base)
        first.sync()
        steps.as_the_server_counts("full load", first)
        deleted_before = counts.served(base, "AllergyIntolerance")
        change(base)
        first.sync()
        found = [first.where("Patient", "\"birthDate\" = '1901-01-01'"),
                 first.where("Condition", "note[1]['text'] = 'changed'"),
                 first.where("Patient", "id LIKE 'fs-p%'")]
        steps.compare("changes", found, [20, 30, PATIENTS + 20])
        # HAPI does not report deletions: only the full refresh sees them.
        steps.compare("deletions that are not reported", counts.stored(first.lake, ["AllergyIntolerance"]),
                      {"AllergyIntolerance": deleted_before})
        first.sync("--full-refresh")
        steps.as_the_server_counts("full refresh", first)
        with Proxy(base, folder / "proxy", "http") as counting:
            killed = Site(program, folder / "killed", counting.base)
            killed.killed_while_it_waits()
            killed.sync()
            steps.as_the_server_counts("killed while the server worked, and resumed", killed)
            steps.compare("kick-offs of both", counting.requests("$export?"), 1)
        group(base, range(10))
        of_group = Site(program, folder / "group", base, export='level = "group"\ngroup = "fs-g"')
        of_group.sync()
        members = dict.fromkeys(TYPES, 0)
        members |= {"AllergyIntolerance": 1, "Condition": 10, "Observation": 40, "Patient": 10}
        steps.compare("a group of ten", counts.stored(of_group.lake, TYPES), members)
        # What is older of the two who join is asked for; the two who leave are kept.
        group(base, range(2, 12))
        of_group.sync()
        members |= {"AllergyIntolerance": 2, "Condition": 12, "Observation": 48, "Patient": 12}
        steps.compare("two join the group, two leave it", counts.stored(of_group.lake, TYPES), members)
        with Proxy(base, folder / "tls", "https") as tls:
            # HAPI does not know of TLS: it names its addresses with the host that it was asked by, and `http:`.
            named = f'"{tls.origin.replace("https:", "http:")}"'
            settings = f'rewrite_origin = [{named}]\ntls = {{ ca_file = "{tls.authority}" }}'
            behind = Site(program, folder / "behind", tls.base, server=settings)
            behind.sync()
            steps.as_the_server_counts("behind a TLS proxy whose server answers with http: addresses", behind)
            steps.compare("addresses with http:", tls.named_http > 0, True)
    return 0 if steps.differs == 0 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

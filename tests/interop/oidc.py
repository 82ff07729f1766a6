"""Syncs with tokens of oidc-provider, a token server that is not ours.

    oidc.py PROGRAM INSTALLED

INSTALLED has node_modules with oidc-provider. The FHIR server is the one of `PROGRAM demo`, behind oidc.mjs, which
admits only tokens that oidc-provider knows. For each case the exit code, the requests for tokens and the rows.
"""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import counts

HERE = pathlib.Path(__file__).parent
TYPES = ["Condition", "Encounter", "MedicationRequest", "Observation", "Organization", "Patient", "Practitioner"]
KEYS = {"es384": ("es384.json", ""), "rs384": ("rs384.pem", 'key_id = "rs"')}
COMPLETE, FAILED, PARTIAL = 0, 1, 3


@contextlib.contextmanager
def demo(program: str, folder: pathlib.Path):
    """The demo server, when its own syncs are over."""
    command = [program, "demo", "--patients", "20", "--dir", str(folder), "--keep-serving"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"The server runs at (\S+)", line):
                    yield found[1]
                    break
        finally:
            process.terminate()


class Servers:
    """oidc-provider and the front."""

    def __init__(self, installed: str, upstream: str, folder: pathlib.Path, behaviour: str):
        self.log = folder / "servers.jsonl"
        command = ["node", str(HERE / "oidc.mjs"), installed, upstream, str(folder), behaviour]
        with self.log.open("w") as log, (folder / "warnings").open("w") as warnings:
            self.process = subprocess.Popen(command, stdout=log, stderr=warnings)
        deadline = time.monotonic() + 60
        while not self.events():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "warnings").read_text())
            time.sleep(0.05)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def config(folder: pathlib.Path, servers: Servers, client: str, settings: str) -> pathlib.Path:
    key, key_id = KEYS[client]
    addresses = servers.events()[0]
    scopes = [f"system/{name}.rs" for name in TYPES]
    path = folder / "fhir-sync.toml"
    path.write_text(f"""
[server]
url = "{addresses['fhir']}"
client_id = "{client}"
private_key_file = "{folder / key}"
{key_id}
scopes = {json.dumps(scopes)}
token_origins = ["{addresses['issuer']}"]
outage_patience = "5s"
poll = {{ min_interval = "100ms", max_interval = "500ms" }}
{settings}
[tables]
root = "{folder / 'lake'}"
[state]
file = "{folder / 'state.json'}"
[[export]]
name = "all"
types = {json.dumps(TYPES)}
incremental = "0 3 * * *"
""")
    return path


def sync(program: str, path: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run([program, "sync", "--config", str(path)], capture_output=True, text=True, timeout=300)


def case(name: str, program: str, installed: str, upstream: str, **options) -> bool:
    """Runs one case; says what differs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        servers = Servers(installed, upstream, folder, options.get("behaviour", "plain"))
        began = time.monotonic()
        try:
            path = config(folder, servers, options["client"], options.get("settings", ""))
            ended = [sync(program, path) for _ in range(options.get("syncs", 1))]
        finally:
            servers.stop()
        seconds = time.monotonic() - began
        events = servers.events()[1:]
        types = options.get("types", TYPES)
        stored = counts.stored(folder / "lake", TYPES)
        expected = {of: counts.served(upstream, of) if of in types else 0 for of in TYPES}
    granted = sum("granted" in event for event in events)
    refusals = [event["why"] for event in events if "refused" in event]
    output = "".join(end.stdout + end.stderr for end in ended)
    differs = [f"exit code {end.returncode}" for end in ended if end.returncode != options["exit"]]
    if granted != options["granted"]:
        differs.append(f"{granted} tokens")
    if len(refusals) != (1 if "why" in options else 0) or not all(options["why"] in why for why in refusals):
        differs.append(f"refusals: {refusals}")
    if stored != expected:
        differs.append(f"rows {stored}, not {expected}")
    if (words := options.get("says")) and words not in output:
        differs.append(f"no {words!r} in its output")
    rows = sum(stored.values())
    verdict = "NOT" if differs else "ok "
    print(f"{verdict} {name}: {granted} tokens, {rows} rows, {seconds:.1f} s", *refusals, sep=", ")
    if differs:
        print(*differs, output, *events, sep="\n", file=sys.stderr)
    return not differs


def main(program: str, installed: str) -> int:
    others = [of for of in TYPES if of != "Observation"]
    elsewhere = 'token_audience = "https://elsewhere.example.org/token"'
    refused = {"exit": FAILED, "granted": 0, "types": []}
    with tempfile.TemporaryDirectory() as scratch, demo(program, pathlib.Path(scratch) / "demo") as upstream:
        def run(name: str, **options) -> bool:
            return case(name, program, installed, upstream, **options)

        agreed = [
            run("ES384, two syncs", client="es384", syncs=2, exit=COMPLETE, granted=2),
            run("RS384, a PEM", client="rs384", exit=COMPLETE, granted=1),
            run("a token revoked twice", client="es384", behaviour="revoked", exit=COMPLETE, granted=3),
            run("a narrowed scope", client="es384", behaviour="narrowed", exit=PARTIAL, granted=1, types=others,
                says="system/Observation.rs"),
            run("a wrong audience", client="es384", settings=elsewhere, why="audience", **refused),
            run("an assertion that has expired", client="rs384", behaviour="late", why="expired", **refused),
            run("an assertion that was used before", client="es384", behaviour="replayed", why="only be used once",
                **(refused | {"granted": 1})),
        ]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

"""A FHIR server that admits one client and has a day of changes at each SIGUSR1.

    hospital.py PORT

It is the server of tests/interop/bulk.py behind a token endpoint: an `$export` without a token that it gave out is
refused. It prints its URL when it serves, and a line after each day.
"""

import json
import pathlib
import secrets
import signal
import sys
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "interop"))
import bulk  # noqa: E402

PATIENTS, OBSERVATIONS = 200, 1000
CREATED, UPDATED, DELETED = 30, 20, 10


class Guarded(bulk.Handler):
    tokens: set[str] = set()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        token = secrets.token_hex(16)
        self.tokens.add(token)
        answer = {"access_token": token, "token_type": "bearer", "expires_in": 300, "scope": "system/*.rs"}
        self.answer(200, "application/json", json.dumps(answer))

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        admitted = self.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens
        if path == "/fhir/$export" and not admitted:
            self.answer(401, "application/fhir+json", json.dumps({"resourceType": "OperationOutcome", "issue": []}))
        else:
            super().do_GET()


def fill(server: bulk.Server) -> None:
    for number in range(PATIENTS):
        server.put("Patient", f"p{number}", gender="female", birthDate="1970-01-01")
    for number in range(OBSERVATIONS):
        server.put("Observation", f"o{number}", status="final", subject={"reference": f"Patient/p{number % PATIENTS}"})
    # More than the overlap: the next export has only what changed afterwards.
    server.advance(hours=1)


def a_day(server: bulk.Server, day: int) -> None:
    server.advance(days=1)
    for number in range(CREATED):
        server.put("Observation", f"day{day}-{number}", status="final", subject={"reference": "Patient/p0"})
    for number in range(UPDATED):
        server.put("Patient", f"p{number}", gender="other", birthDate="1970-01-02")
    for number in range(DELETED):
        server.delete("Observation", f"o{day * DELETED + number}")


def main() -> None:
    # Before the server has threads, which inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    server = bulk.Server(int(sys.argv[1]), Guarded)
    fill(server)
    print(server.url, flush=True)
    day = 0
    while True:
        signal.sigwait([signal.SIGUSR1])
        a_day(server, day)
        day += 1
        print(f"{day} days", flush=True)


if __name__ == "__main__":
    main()

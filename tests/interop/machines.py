"""Three daemons share the exports of one site and keep their state in the object store.

They are killed at random while the server changes and the store loses responses. In the end the tables equal the
server, each commit is in the ledger once, and no number of a run was given twice.
"""

import random
import signal
import time
from collections.abc import Callable

import proxy
import stores
from lake import LEDGER, Facts, Lake, first_day

SEED = 14
MACHINES, HOURS = 3, 10
WAITED_SECONDS = 180
EXPORTS = """
[daemon]
share_exports = true
[[export]]
name = "people"
types = ["Patient"]
incremental = "* * * * * *"
[[export]]
name = "observations"
types = ["Observation"]
incremental = "* * * * * *"
"""


class Machine:
    """A daemon, and those that took its place."""

    def __init__(self, lake: Lake, number: int, url: str) -> None:
        state = f'url = "{lake.store.root(f"{lake.name}/state")}"'
        self.config = lake.program(url, f"machine-{number}", state=state, exports=EXPORTS)
        self._lake = lake
        self._log = self.config.with_suffix(".log")
        self.start()

    def start(self) -> None:
        listen = f"127.0.0.1:{stores.free_port()}"
        settings = {"HEALTH__LISTEN": listen, "MAINTENANCE__SCHEDULE": "*/5 * * * * *"}
        with self._log.open("a") as log:
            self.process = self._lake.begin(self.config, "run", settings, stdout=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def change(lake: Lake, chance: random.Random, hour: int) -> None:
    lake.server.advance(hours=1)
    for _ in range(5):
        lake.server.put("Patient", f"p-{chance.randrange(60)}", gender="other", birthDate=f"19{hour + 10}-01-01")
        lake.server.put("Observation", f"o-{chance.randrange(40)}", status="final", valueString=f"hour {hour}")
    key = ("Patient", f"p-{chance.randrange(60)}")
    if key in lake.server.lines:
        lake.server.delete(*key)
        lake.tombstones.add(key)


def waited(until: Callable[[], bool]) -> bool:
    for _ in range(WAITED_SECONDS):
        if until():
            return True
        time.sleep(1)
    return False


def equal(lake: Lake) -> bool:
    """Do the tables equal the server? They are read while daemons write."""
    for resource_type in ["Patient", "Observation"]:
        read = lake.store.rows(lake.table(f"{resource_type}.parquet"), "SELECT id, resource_json FROM t")
        if sorted(read) != sorted(lake.lines(resource_type).items()):
            return False
    return True


def every(named: Callable[[str], Lake], _: Facts) -> bool:
    lake = named("machines")
    chance = random.Random(SEED)
    lost: list[str] = []

    def fault(request: proxy.Request) -> bool:
        """One of fifty writes is applied, and its response is 500."""
        if request.method != "PUT" or chance.random() >= 0.02:
            return False
        request.ask()
        request.refuse(500, b"InternalError")
        lost.append(request.kind)
        return True

    lake.tombstones_once = False
    first_day(lake)
    url = lake.store.proxied(fault).url
    machines = [Machine(lake, number, url) for number in range(MACHINES)]
    try:
        for hour in range(HOURS):
            wanted = lake.server.exports() + chance.randint(1, 5)
            lake.expect("an export is requested", waited(lambda: lake.server.exports() >= wanted))
            change(lake, chance, hour)
            machine = chance.choice(machines)
            machine.kill()
            machine.start()
        lake.expect("the daemons make the tables equal to the server", waited(lambda: equal(lake)))
        codes = [machine.stop() for machine in machines]
        lake.expect(f"the daemons end: {codes}", codes == [0] * MACHINES)
    finally:
        for machine in machines:
            machine.process.kill()
    # What was killed last is in the ledger after one more run.
    lake.succeeds(machines[0].config, "sync")
    lake.check("the end")
    rows = lake.store.rows(lake.table(LEDGER), "SELECT run, resource_type, table_version FROM t")
    runs = {(run, resource_type) for run, resource_type, _ in rows}
    lake.expect(f"a run is in the ledger once: {sorted(map(str, rows))}", len(rows) == len(runs))
    return lake.end(f"{len(runs)} rows in the ledger, {HOURS} kills, {len(lost)} responses lost")

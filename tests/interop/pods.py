"""The state in the object store, beside the tables: pods without a volume.

Each command runs in a pod of its own, with an empty folder. Pods are killed at any write, and another one continues;
the responses to writes of the state and of the leases are lost. Nothing differs from a process with a state file.
"""

import itertools
import random
import subprocess
from collections.abc import Callable

import proxy
from lake import TABLES, Facts, Lake, Settings, run_days

SEED = 14
# How often pods are killed before one is left alone, and at which of their writes.
KILLED, WRITES = 2, 12


class Pods:
    """Pods one after the other, which reach the store through `proxied`."""

    def __init__(self, lake: Lake, proxied: proxy.Proxy) -> None:
        self.lake = lake
        self._proxied = proxied
        self._numbers = itertools.count()

    def next(self):
        """The configuration of a pod that nobody has seen before."""
        url = self.lake.store.root(f"{self.lake.name}/state")
        return self.lake.program(self._proxied.url, f"pod-{next(self._numbers)}", state=f'url = "{url}"')


def moved(lake: Lake, expected: Facts) -> bool:
    """Each command is that of another pod."""
    proxied = lake.store.proxied()
    pods = Pods(lake, proxied)
    run_days(lake, lambda command, settings: lake.run(pods.next(), command, settings), expected)
    of_state = sum(entry.kind in ("state", "lease") for entry in proxied.entries)
    return lake.end(f"{of_state} of {len(proxied.entries)} requests are for the state and the leases")


def answers_lost(lake: Lake, expected: Facts) -> bool:
    """Each second write of the state, and of a lease, is applied, and its response is 500."""
    lost: list[str] = []
    writes = itertools.count()

    def fault(request: proxy.Request) -> bool:
        if request.method != "PUT" or request.kind not in ("state", "lease") or next(writes) % 2:
            return False
        request.ask()
        request.refuse(500, b"InternalError")
        lost.append(request.key)
        return True

    pods = Pods(lake, lake.store.proxied(fault))
    run_days(lake, lambda command, settings: lake.run(pods.next(), command, settings), expected)
    return lake.end(f"{len(lost)} responses lost")


def killed(lake: Lake) -> bool:
    """Two of three pods are killed at a random write to the store, and half of these still arrive. The next continues.
    """
    chance = random.Random(SEED)
    victim: list[subprocess.Popen] = []
    left: list[int] = []
    deaths: list[str] = []

    def fault(request: proxy.Request) -> bool:
        if not left or request.method == "GET":
            return False
        left[0] -= 1
        if left[0] == 0:
            if chance.random() < 0.5:
                request.ask()
            deaths.append(f"{request.method} {request.kind}")
            victim[0].kill()
            request.close(reset=True)
            return True
        return False

    def run(command: str, settings: Settings) -> tuple[int, str]:
        for _ in range(KILLED):
            left[:] = [chance.randint(1, WRITES)]
            victim[:] = [lake.begin(pods.next(), command, settings)]
            victim[0].communicate()
        left.clear()
        return lake.run(pods.next(), command, settings)

    lake.tombstones_once = False
    pods = Pods(lake, lake.store.proxied(fault))
    run_days(lake, run)
    rows = lake.store.rows(lake.table(TABLES[-1]), 'SELECT run, resource_type, "end" FROM t')
    lake.expect(f"a run is in the ledger once for each type: {sorted(rows)}", len(rows) == len(set(rows)))
    return lake.end(f"killed at {', '.join(deaths)}")


def every(lake: Callable[[str], Lake], expected: Facts) -> bool:
    return all([
        moved(lake("pods"), expected),
        answers_lost(lake("pods-answers-lost"), expected),
        killed(lake("pods-killed")),
    ])

"""Commits on an object store whose responses are lost, and that other writers overtake.

The days (lake.py) run once without faults, and then once with each fault (lossy.py) at every commit. The program's
output, the logs, and what delta-rs reads from the store must be the same. Among the commits are the creation of a
table, a first load, deletion vectors for a table, merges, tombstones, a watermark alone, a compaction and those of the
ledger. Then other writers commit to the same tables: the proxy, delta-rs, and a second process, which the lease keeps
away.
"""

import concurrent.futures
import functools
import json
import threading
import uuid
from collections.abc import Callable

import lossy
import proxy
from lake import LEDGER, TABLES, Facts, Lake, Settings, changed_rows, commits, printed_counts, run_days

# A commit that the proxy makes; it changes no row.
OTHER_COMMIT = {"operation": "VACUUM START", "operationParameters": {}, "timestamp": 1700000000000, "otherWriter": True}
FAULTS = {"answer-lost": lossy.answer_lost, "cut": lossy.cut, "reset": lossy.reset, "refused": lossy.refused,
          "conflict": lossy.conflict}
# Another process holds the tables.
IN_USE = 11


def undisturbed(lake: Lake) -> tuple[bool, Facts]:
    config = lake.program(lake.store.url, "direct")
    of = run_days(lake, lambda command, settings: lake.run(config, command, settings))
    kinds = {operation for table in TABLES for operation, _, _ in of[table]}
    for kind in ["CREATE TABLE", "SET TBLPROPERTIES", "MERGE", "WRITE", "OPTIMIZE"]:
        lake.expect(f"a {kind} is among the commits: {kinds}", kind in kinds)
    alone = [rows for table in TABLES for operation, rows, watermarks in of[table]
             if operation == "MERGE" and watermarks and ("numSourceRows", "0") in rows]
    lake.expect("a watermark alone is among the commits", alone != [])
    return lake.end(f"{commits(of)} commits"), of


def lossy_proxy(lake: Lake, fault: proxy.Fault) -> lossy.Proxy:
    return lossy.Proxy(lake.store.url, lake.store.bucket_path, fault)


def disturbed(lake: Lake, expected: Facts) -> bool:
    """Each commit meets the fault that the lake is named after. Nothing else differs from a run without faults."""
    proxied = lossy_proxy(lake, FAULTS[lake.name])
    config = lake.program(proxied.url, "proxied")
    run_days(lake, lambda command, settings: lake.run(config, command, settings), expected)
    answers = lake.store.answers[lake.name]
    for commit, statuses in proxied.statuses.items():
        lake.expect(f"{commit} is answered {answers}, not {statuses}", statuses == answers)
    met, every = len(proxied.statuses), commits(expected)
    lake.expect(f"each of {every} commits has met it, not {met}", met == every)
    return lake.end(f"{met} commits, each answered {answers}")


def overtaken(lake: Lake, expected: Facts) -> bool:
    """Before each commit another writer commits at the same version: it creates the table if there is none, else it
    changes no row.
    """
    foreign: set[lossy.Version] = set()

    def put_another(commit: proxy.Request, body: str) -> None:
        lake.store.create(commit.key, body.encode())
        foreign.add(commit.commit)

    def other_first(commit: proxy.Request) -> bool:
        table, version = commit.commit
        if version == 0:
            actions = [json.loads(line) for line in commit.body.splitlines()]
            for action in actions:
                action.get("metaData", {})["id"] = str(uuid.uuid4())
            put_another(commit, "\n".join(json.dumps(action) for action in actions))
        # The commit is sent again at the next version; it is overtaken only once.
        elif version == 1 or (table, version - 1) not in foreign:
            put_another(commit, json.dumps({"commitInfo": OTHER_COMMIT}))
        return False

    def run(command: str, settings: Settings) -> tuple[int, str]:
        code, output = lake.run(config, command, settings)
        if command == "maintain":
            left = code != 0 and "other writers" in output
            lake.expect(f"a maintenance leaves what other writers change: {output}", left)
            # One attempt for each commit that is still missing in one table: the tombstones of each type are one
            # commit.
            for _ in range(2):
                code, output = (code, output) if code == 0 else lake.run(config, command, settings)
        return code, output

    config = lake.program(lossy_proxy(lake, other_first).url, "proxied")
    run_days(lake, run, expected)
    return lake.end(f"{len(foreign)} commits of other writers")


def refused_for_good(lake: Lake, expected: Facts) -> bool:
    """No commit is applied, however often it is sent. The run fails, changes no table but the ledger, and the next run
    succeeds.
    """
    proxied = lossy_proxy(lake, lossy.refused)
    proxied.always = True
    config = lake.program(proxied.url, "proxied", max_retries="1")
    failures = 0

    def run(command: str, settings: Settings) -> tuple[int, str]:
        nonlocal failures
        before = [lake.store.log(lake.table(table)) for table in TABLES]
        proxied.fault = lossy.refused
        code, output = lake.run(config, command, settings)
        failures += code != 0
        lake.expect(f"{command} fails: {output}", code != 0)
        after = [lake.store.log(lake.table(table)) for table in TABLES]
        lake.expect("a run that fails leaves the tables as they were", before == after)
        proxied.fault = None
        return lake.run(config, command, settings)

    run_days(lake, run, {what: facts for what, facts in expected.items() if what != LEDGER})
    return lake.end(f"{failures} runs failed and were repeated")


def uncertain(lake: Lake, fault: proxy.Fault, **storage_options: str) -> bool:
    """A run fails although its commit may be applied. Repeated runs make the tables equal to the server."""
    config = lake.program(lossy_proxy(lake, fault).url, "proxied", **storage_options)
    lake.tombstones_once = False
    failures = 0

    def run(command: str, settings: Settings) -> tuple[int, str]:
        nonlocal failures
        for _ in range(8):
            code, output = lake.run(config, command, settings)
            if code == 0:
                break
            failures += 1
        return code, output

    run_days(lake, run)
    lake.expect("some run failed", failures > 0)
    return lake.end(f"{failures} runs failed and were repeated")


def second_process(lake: Lake, expected: Facts) -> bool:
    """At the first commit of each run a second process, with a state file of its own, runs the same command. It is
    refused, and nothing else differs.
    """
    ends: list[int] = []

    def second(command: str, settings: Settings) -> None:
        code, output = lake.run(other, command, settings)
        lake.expect(f"it says who holds the tables: {output}", code == IN_USE and "process" in output)
        ends.append(code)

    def run(command: str, settings: Settings) -> tuple[int, str]:
        proxied.fault = at_the_first(functools.partial(second, command, settings))
        return lake.run(held, command, settings)

    proxied = lossy_proxy(lake, lambda _: False)
    # The first one waits for its commit until the second one has ended.
    held, other = lake.program(proxied.url, "held", timeout="10m"), lake.program(lake.store.url, "other")
    run_days(lake, run, expected)
    return lake.end(f"the second process was refused {len(ends)} times")


def lease_lost(lake: Lake, expected: Facts) -> bool:
    """At the first commit of each run somebody deletes the lease, and a second process takes it and runs to its end.
    The first one finds its rows there, and writes nothing more.
    """
    ran: list[tuple[int, str]] = []

    def second(command: str, settings: Settings) -> None:
        # Otherwise the first one renews it before the second one has begun.
        proxied.lease_gate.clear()
        lake.store.delete(lake.table("_fhir_sync/lease.json"))
        ran.append(lake.run(other, command, settings))
        proxied.lease_gate.set()

    def run(command: str, settings: Settings) -> tuple[int, str]:
        ran.clear()
        proxied.fault = at_the_first(functools.partial(second, command, settings))
        # Otherwise the check before the commit of another table writes the lease again.
        _, output = lake.run(held, command, settings | {"SYNC__PARALLEL_UPSERTS": "1"})
        lake.expect(f"the first one says that it lost the lease: {output}", "has taken over" in output)
        lake.expect(f"the second one succeeds: {ran}", [code for code, _ in ran] == [0])
        return ran[0]

    lake.tombstones_once = False
    proxied = lossy_proxy(lake, lambda _: False)
    # The first one waits for its commit until the second one has ended.
    held, other = lake.program(proxied.url, "held", timeout="10m"), lake.program(lake.store.url, "other")
    run_days(lake, run, expected)
    return lake.end("the second process made all commits")


def at_the_first(then: Callable[[], None]) -> proxy.Fault:
    """Does something at the first commit, before it is passed on."""
    lock, done = threading.Lock(), []

    def fault(_: proxy.Request) -> bool:
        with lock:
            if not done:
                done.append(True)
                then()
        return False

    return fault


def race(lake: Lake) -> bool:
    """Two processes begin at the same time. One of them at least succeeds; the other one is refused, or follows."""
    configs = [lake.program(lake.store.url, f"process-{number}") for number in range(2)]
    lake.tombstones_once = False
    refused = 0

    def run(command: str, settings: Settings) -> tuple[int, str]:
        nonlocal refused
        with concurrent.futures.ThreadPoolExecutor() as threads:
            ends = list(threads.map(lambda config: lake.run(config, command, settings), configs))
        codes = sorted(code for code, _ in ends)
        refused += codes.count(IN_USE)
        lake.expect(f"one succeeds: {ends}", codes in ([0, 0], [0, IN_USE]))
        return min(ends)

    run_days(lake, run)
    lake.expect("some process was refused", refused > 0)
    return lake.end(f"of two processes one was refused {refused} times")


def another_engine(lake: Lake) -> bool:
    """Before each commit to the table, delta-rs compacts it and deletes a row that the commit inserts again."""
    before: list[str] = []

    def other_first(commit: proxy.Request) -> bool:
        table, version = commit.commit
        # The commit that is sent again at the next version is not overtaken again.
        if version > 1 and table.endswith("Patient.parquet") and not before:
            opened = lake.store.table(table)
            before.append("OPTIMIZE" if opened.optimize.compact()["numFilesAdded"] else "nothing")
            if opened.delete("id = 'p-0'")["num_deleted_rows"]:
                before.append("DELETE")
        return False

    def run(command: str, settings: Settings) -> tuple[int, str]:
        before.clear()
        lake.server.advance(hours=1)
        lake.server.put("Patient", "p-0", gender="female")
        copy_on_write = settings | {"TABLES__UPDATE_MODE": "copy-on-write"}
        code, output = lake.run(config, command, copy_on_write)
        done.extend(before)
        if command == "maintain":
            lake.expect(f"a maintenance leaves what other writers change: {before} {output}", not before or code != 0)
            return lake.run(config, "sync", copy_on_write)
        return code, output

    done: list[str] = []
    config = lake.program(lossy_proxy(lake, other_first).url, "proxied")
    run_days(lake, run)
    lake.expect(f"it did both: {done}", {"OPTIMIZE", "DELETE"} <= set(done))
    return lake.end(f"delta-rs before its commits: {', '.join(done)}")


def every(lake: Callable[[str], Lake], expected: Facts) -> bool:
    """All of them, each in a lake of its name. `expected` is what the commits say without a fault."""
    return all([
        *(disturbed(lake(name), expected) for name in FAULTS),
        overtaken(lake("overtaken"), expected),
        refused_for_good(lake("refused-for-good"), expected),
        uncertain(lake("late"), lossy.late, timeout="1s"),
        second_process(lake("second-process"), expected),
        lease_lost(lake("lease-lost"), expected),
        race(lake("race")),
        another_engine(lake("another-engine")),
    ])

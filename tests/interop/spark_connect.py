"""A Spark Connect server with Delta, which can be killed and started again, and a proxy before it that cuts connections.

The server is started as docs/spark.md says, from the jars beside the Python that runs this; for a machine with two
cores.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pyspark
from pyspark.sql.connect.session import SparkSession

INSTALLED = pathlib.Path(sys.prefix)
START_SECONDS = 180
# Into the table in which rows change.
MERGE = re.compile(rb"MERGE INTO [^ ]{0,500}Patient")


class Server:
    """Spark's files are below `folder`. It keeps its port when it is started again."""

    def __init__(self, folder: pathlib.Path, memory: str = "3g") -> None:
        self.port = free_port()
        self._folder = folder
        self._memory = memory
        self._session = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        home = pathlib.Path(pyspark.__file__).parent
        jars = ",".join(str(jar) for jar in sorted((INSTALLED / "jars").glob("*.jar")))
        settings = {
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": str(self.port),
            "spark.ui.enabled": "false",
            "spark.local.dir": str(self._folder / "local"),
            "spark.sql.warehouse.dir": str(self._folder / "warehouse"),
            "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={self._folder}/metastore;create=true",
            # Delta's own numbers are for clusters: 50 partitions for a snapshot, 200 for a shuffle.
            "spark.databricks.delta.snapshotPartitions": "2",
            "spark.sql.shuffle.partitions": "4",
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        }
        command = [
            home / "bin" / "spark-submit",
            "--class", "org.apache.spark.sql.connect.service.SparkConnectServer",
            "--master", "local[2]", "--driver-memory", self._memory, "--jars", jars,
        ]
        for name, value in settings.items():
            command += ["--conf", f"{name}={value}"]
        environment = os.environ | {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}
        log = open(self._folder / "server.log", "ab")
        self._process = subprocess.Popen(
            [*command, "spark-internal"], env=environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Spark Connect does not start; see {self._folder}/server.log")
            time.sleep(0.2)

    def kill(self) -> None:
        """As the kernel does it: nothing is finished."""
        self._session = None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def sql(self, statement: str) -> list[dict]:
        if self._session is None:
            self._session = SparkSession.builder.remote(f"sc://127.0.0.1:{self.port}").create()
            self._session.conf.set("spark.sql.session.timeZone", "UTC")
        return [row.asDict() for row in self._session.sql(statement).collect()]


class Proxy:
    """Passes bytes to a port, counts the MERGEs among them, and cuts all connections when it is told to. While
    `may_pass` is not set, it keeps MERGEs back."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.merges = 0
        self.may_pass = threading.Event()
        self.may_pass.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        with self._lock:
            cut, self._open = self._open, []
        for connection in cut:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return len(cut)

    def _accept(self) -> None:
        while True:
            inner, _ = self._listener.accept()
            try:
                outer = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                inner.close()
                continue
            with self._lock:
                self._open += [inner, outer]
            for one, other, seen in [(inner, outer, self._seen), (outer, inner, None)]:
                threading.Thread(target=pump, args=(one, other, seen), daemon=True).start()

    def _seen(self, data: bytes) -> None:
        if merges := len(MERGE.findall(data)):
            self.merges += merges
            self.may_pass.wait()


def pump(one: socket.socket, other: socket.socket, seen: Callable[[bytes], None] | None) -> None:
    try:
        while data := one.recv(65536):
            if seen:
                seen(data)
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False

"""Object stores that run on this machine: moto and versitygw (S3), azurite (Azure), fake-gcs-server (Google).

Each is a process of its own. Secrets reach fhir-sync by its environment, everything else by `tables.storage_options`.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import deltalake
import proxy

BUCKET = "hospital"
SIGNED_BY_AZURE = ["Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date",
                   "If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range"]


class Store:
    """A store with one bucket. `url` is where it is reached without a proxy."""

    name: str
    scheme: str
    # What the paths of objects begin with.
    bucket_path = f"/{BUCKET}/"
    # The status of each response to a commit, by the fault that it meets (lossy.py).
    answers: dict[str, list[int | None]] = {
        "answer-lost": [500, 412], "cut": [None, 412], "reset": [None], "refused": [500, 200], "conflict": [409, 200],
    }

    # How it refuses credentials that were replaced.
    refusal = (403, b"ExpiredToken")

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen] = []

    def start(self, command: list[str], address: str, environment: dict[str, str] | None = None) -> str:
        """Starts the server; returns the URL at which it says, in the words of `address`, that it listens."""
        log = self.folder / f"{self.name}-{len(self._processes)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder,
                                       env=os.environ | (environment or {}))
        self._processes.append(process)
        for _ in range(600):
            if found := re.search(address, log.read_text()):
                return found[1]
            if process.poll() is not None:
                break
            threading.Event().wait(0.1)
        self.stop()
        raise RuntimeError(f"{command[0]} does not start: {log.read_text()}")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()

    def root(self, lake: str) -> str:
        return f"{self.scheme}://{BUCKET}/{lake}"

    def settings(self, url: str) -> dict[str, str]:
        """`tables.storage_options` for the store at `url`."""
        raise NotImplementedError

    def secrets(self) -> dict[str, str]:
        """What the environment of fhir-sync has."""
        raise NotImplementedError

    def options(self, url: str) -> dict[str, str]:
        """What delta-rs wants."""
        raise NotImplementedError

    def replaceable(self, file: pathlib.Path) -> dict[str, str]:
        """Settings that take a secret from a file, which is replaced while fhir-sync runs; none where the store takes
        only one.
        """
        raise NotImplementedError

    def replacement(self, number: int) -> str:
        """A secret for that file; each number has another."""
        return f"token-{number}"

    def carries(self, request: proxy.Request, secret: str) -> bool:
        """Was the request made with this secret?"""
        raise NotImplementedError

    def keys(self, prefix: str) -> list[str]:
        """The names of all objects that begin with `prefix`, in order."""
        raise NotImplementedError

    def get(self, key: str) -> bytes:
        raise NotImplementedError

    def create(self, key: str, body: bytes) -> None:
        """Writes an object that is not there yet; an error where it is."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def log(self, table: str) -> list[list[dict]]:
        """The actions of each commit of a table."""
        names = [key for key in self.keys(f"{table}/_delta_log/") if key.endswith(".json")]
        commits = [[json.loads(line) for line in self.get(name).splitlines() if line.strip()] for name in names]
        expected = [f"{table}/_delta_log/{version:020}.json" for version in range(len(commits))]
        if names != expected:
            raise RuntimeError(f"{table} has gaps in its log: {names}")
        return commits

    def table(self, table: str) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(self.root(table), storage_options=self.options(self.url))

    def rows(self, table: str, question: str) -> list[tuple]:
        """What delta-rs returns; nothing if there is no table."""
        try:
            builder = deltalake.QueryBuilder().register("t", self.table(table))
        except deltalake.exceptions.TableNotFoundError:
            return []
        answer = builder.execute(question).read_all()
        return list(zip(*(answer.column(number).to_pylist() for number in range(answer.num_columns))))

    def proxied(self, fault: proxy.Fault | None = None, latency_seconds: float = 0.0) -> proxy.Proxy:
        return proxy.Proxy(self.url, self.bucket_path, fault, latency_seconds)


class S3(Store):
    scheme = "s3"

    def connect(self, url: str) -> None:
        import boto3

        self.url = url
        self._client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key-of-test",
                                    aws_secret_access_key="secret-of-test")
        self._client.create_bucket(Bucket=BUCKET)

    def settings(self, url: str) -> dict[str, str]:
        return {"aws_region": "us-east-1", "aws_endpoint": url, "allow_http": "true"}

    def secrets(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "key-of-test", "AWS_SECRET_ACCESS_KEY": "secret-of-test"}

    def options(self, url: str) -> dict[str, str]:
        return self.settings(url) | self.secrets()

    def replaceable(self, file: pathlib.Path) -> dict[str, str]:
        key = file.with_name("secret-key")
        key.touch(0o600)
        key.write_text(self.secrets()["AWS_SECRET_ACCESS_KEY"])
        return {"aws_access_key_id": self.secrets()["AWS_ACCESS_KEY_ID"], "aws_secret_access_key_file": str(key),
                "aws_session_token_file": str(file)}

    def carries(self, request: proxy.Request, secret: str) -> bool:
        return request.headers.get("x-amz-security-token") == secret

    def keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def create(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=body, IfNoneMatch="*")

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def uploads(self) -> list[str]:
        """Multipart uploads that are neither complete nor aborted."""
        return [upload["Key"] for upload in self._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


class Moto(S3):
    """It does not check signatures."""

    name = "s3"

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        # A process of its own, because delta-rs holds Python's lock while it reads.
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self.connect(self.start(command, r"(http://127\.0\.0\.1:\d+)"))


class Versity(S3):
    """It checks signatures, and keeps objects as files."""

    name = "versity"

    def __init__(self, folder: pathlib.Path, program: str) -> None:
        super().__init__(folder)
        (folder / "objects").mkdir()
        port = free_port()
        attributes = folder / "attributes"
        attributes.mkdir()
        command = [program, "--port", f"127.0.0.1:{port}", "posix", "--sidecar", str(attributes), "objects"]
        keys = {"ROOT_ACCESS_KEY": "key-of-test", "ROOT_SECRET_KEY": "secret-of-test"}
        self.start(command, r"(http://127\.0\.0\.1:\d+)", keys)
        self.connect(f"http://127.0.0.1:{port}")

    def replaceable(self, file: pathlib.Path) -> dict[str, str]:
        """It knows no session tokens."""
        return {}


class Azurite(Store):
    """It checks signatures."""

    name = "azure"
    scheme = "az"
    refusal = (403, b"AuthenticationFailed")
    ACCOUNT = "devstoreaccount1"
    # Microsoft's, for emulators: everybody has it.
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    bucket_path = f"/{ACCOUNT}/{BUCKET}/"
    answers = Store.answers | {
        "answer-lost": [500, 409], "cut": [None, 409], "refused": [500, 201], "conflict": [409, 201],
    }

    def __init__(self, folder: pathlib.Path, program: str) -> None:
        super().__init__(folder)
        command = [program, "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence",
                   "--blobHost", "127.0.0.1", "--blobPort", "0"]
        self.url = self.start(command, r"listens on (http://127\.0\.0\.1:\d+)")
        self._ask("PUT", "", {"restype": "container"})

    def root(self, lake: str) -> str:
        """Some lakes are named as Data Lake Storage names them."""
        if lake.startswith(("whole", "pods")):
            return f"abfss://{BUCKET}@{self.ACCOUNT}.dfs.core.windows.net/{lake}"
        return super().root(lake)

    def settings(self, url: str) -> dict[str, str]:
        return {"azure_storage_account_name": self.ACCOUNT, "azure_storage_endpoint": f"{url}/{self.ACCOUNT}",
                "allow_http": "true"}

    def secrets(self) -> dict[str, str]:
        return {"AZURE_STORAGE_ACCOUNT_KEY": self.KEY}

    def options(self, url: str) -> dict[str, str]:
        return self.settings(url) | {"azure_storage_account_key": self.KEY}

    def replaceable(self, file: pathlib.Path) -> dict[str, str]:
        return {"azure_storage_sas_key_file": str(file)}

    def replacement(self, number: int) -> str:
        """A shared access signature of the account; each has another end."""
        end, version = f"2099-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z", "2020-08-04"
        signed = "\n".join([self.ACCOUNT, "rwdlac", "b", "sco", "", end, "", "https,http", version, ""])
        code = hmac.new(base64.b64decode(self.KEY), signed.encode(), hashlib.sha256).digest()
        return urllib.parse.urlencode({"sv": version, "ss": "b", "srt": "sco", "sp": "rwdlac", "se": end,
                                       "spr": "https,http", "sig": base64.b64encode(code).decode()})

    def carries(self, request: proxy.Request, secret: str) -> bool:
        signature = urllib.parse.parse_qs(secret)["sig"]
        return urllib.parse.parse_qs(request.query).get("sig") == signature

    def keys(self, prefix: str) -> list[str]:
        keys, marker = [], ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix} | ({"marker": marker} if marker else {})
            listed = xml.etree.ElementTree.fromstring(self._ask("GET", "", query))
            keys += [name.text for name in listed.iterfind("Blobs/Blob/Name")]
            marker = listed.findtext("NextMarker") or ""
            if not marker:
                return sorted(keys)

    def get(self, key: str) -> bytes:
        return self._ask("GET", key, {})

    def create(self, key: str, body: bytes) -> None:
        self._ask("PUT", key, {}, body)

    def delete(self, key: str) -> None:
        self._ask("DELETE", key, {})

    def _ask(self, method: str, key: str, query: dict[str, str], body: bytes | None = None) -> bytes:
        """A request that is signed with the account's key (Shared Key). A body creates a blob."""
        path = urllib.parse.quote(f"/{self.ACCOUNT}/{BUCKET}" + (f"/{key}" if key else ""))
        own = {"x-ms-date": "Thu, 01 Jan 2026 00:00:00 GMT", "x-ms-version": "2023-11-03"}
        standard = dict.fromkeys(SIGNED_BY_AZURE, "")
        if body is not None:
            own["x-ms-blob-type"] = "BlockBlob"
            standard |= {"Content-Length": str(len(body)), "Content-Type": "application/json", "If-None-Match": "*"}
        signed = "\n".join([method, *standard.values(), *(f"{name}:{value}" for name, value in sorted(own.items()))])
        signed += f"\n/{self.ACCOUNT}{path}" + "".join(f"\n{name}:{value}" for name, value in sorted(query.items()))
        code = hmac.new(base64.b64decode(self.KEY), signed.encode(), hashlib.sha256).digest()
        headers = own | {name: value for name, value in standard.items() if value}
        headers["Authorization"] = f"SharedKey {self.ACCOUNT}:{base64.b64encode(code).decode()}"
        url = f"{self.url}{path}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)) as answer:
            return answer.read()


class Google(Store):
    """fake-gcs-server behind gcs_xml.py. It checks no tokens."""

    name = "gcs"
    scheme = "gs"
    refusal = (401, b"AuthenticationRequired")

    def __init__(self, folder: pathlib.Path, program: str) -> None:
        super().__init__(folder)
        port = free_port()
        self._server = f"http://127.0.0.1:{port}"
        command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
                   "-public-host", f"127.0.0.1:{port}"]
        self.start(command, r"(server started at)")
        self._json("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())
        translator = pathlib.Path(__file__).with_name("gcs_xml.py")
        self.url = self.start([sys.executable, str(translator), self._server, BUCKET], r"listening at (\S+)")
        self._account = folder / "service-account.json"
        nothing = dict.fromkeys(["client_email", "private_key", "private_key_id"], "")
        self._account.write_text(json.dumps(nothing | {"disable_oauth": True}))
        self._account.chmod(0o600)

    def settings(self, url: str) -> dict[str, str]:
        return {"google_base_url": url, "allow_http": "true"}

    def secrets(self) -> dict[str, str]:
        return {"GOOGLE_SERVICE_ACCOUNT": str(self._account)}

    def options(self, url: str) -> dict[str, str]:
        return self.settings(url) | {"google_service_account": str(self._account)}

    def replaceable(self, file: pathlib.Path) -> dict[str, str]:
        return {"google_bearer_token_file": str(file)}

    def carries(self, request: proxy.Request, secret: str) -> bool:
        return request.headers.get("Authorization") == f"Bearer {secret}"

    def keys(self, prefix: str) -> list[str]:
        query = urllib.parse.urlencode({"maxResults": 100_000, "prefix": prefix})
        listed = json.loads(self._json("GET", f"/storage/v1/b/{BUCKET}/o?{query}"))
        return sorted(entry["name"] for entry in listed.get("items", []))

    def get(self, key: str) -> bytes:
        return self._json("GET", f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(key, safe='')}?alt=media")

    def create(self, key: str, body: bytes) -> None:
        name = urllib.parse.quote(key, safe="")
        self._json("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&ifGenerationMatch=0&name={name}", body)

    def delete(self, key: str) -> None:
        self._json("DELETE", f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(key, safe='')}")

    def _json(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._server + path, body, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(name: str, folder: pathlib.Path, server: str) -> Store:
    """The store of that name. `server` is the program of the server; for moto it is not used."""
    match name:
        case "s3":
            return Moto(folder)
        case "versity":
            return Versity(folder, server)
        case "azure":
            return Azurite(folder, server)
        case "gcs":
            return Google(folder, server)
    raise SystemExit(f"unknown store {name}")

"""Google's XML API for uploads, in front of fake-gcs-server, which has only the JSON API for them.

The crate `object_store`, and so fhir-sync and delta-rs, uploads by the XML API: PUT, and multipart uploads. To these
fake-gcs-server 1.56 answers "invalid uploadType". It also lists from the beginning whatever `start-after` says. This
proxy, a part of the tests, makes one upload of the JSON API of each, with `ifGenerationMatch`, and leaves out of a
listing what `start-after` excludes. Everything else is fake-gcs-server's: reads, ranges, listings, deletions, and which
of two conditional uploads wins.

    gcs_xml.py URL BUCKET

It prints where it listens. It is a process of its own, because delta-rs holds Python's lock while it reads.
"""

import http.client
import itertools
import json
import re
import sys
import threading
import urllib.parse

import proxy

CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
KEY = re.compile(rb"<Key>(.*?)</Key>")
XML = ("Content-Type", "application/xml")


class Translator(proxy.Proxy):
    # fake-gcs-server knows its buckets by it.
    keeps_host = False

    def __init__(self, store: str, bucket: str) -> None:
        super().__init__(store, f"/{bucket}/", self.translate)
        self._name = bucket
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)

    def translate(self, request: proxy.Request) -> bool:
        query = urllib.parse.parse_qs(request.query, keep_blank_values=True)
        upload = query.get("uploadId", [""])[0]
        match request.method:
            case "POST" if "uploads" in query:
                upload = str(next(self._numbers))
                self._uploads[upload] = {}
                self.say(request, "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            case "PUT" if upload:
                part = int(query["partNumber"][0])
                self._uploads[upload][part] = request.body
                request.answer(proxy.Answer(200, [("ETag", f'"{part}"')], b""))
            case "POST" if upload:
                parts = self._uploads.pop(upload)
                self.upload(request, b"".join(parts[number] for number in sorted(parts)), complete=True)
            case "DELETE" if upload:
                self._uploads.pop(upload, None)
                request.answer(proxy.Answer(204, [], b""))
            case "PUT":
                self.upload(request, request.body, complete=False)
            case "GET" if "start-after" in query:
                request.answer(without(request.ask(), query["start-after"][0].encode()))
            case _:
                return False
        return True

    def upload(self, request: proxy.Request, body: bytes, complete: bool) -> None:
        query = {"uploadType": "media", "name": request.key}
        if condition := request.headers.get("x-goog-if-generation-match"):
            query["ifGenerationMatch"] = condition
        store = http.client.HTTPConnection(self.store.hostname, self.store.port)
        path = f"/upload/storage/v1/b/{self._name}/o?{urllib.parse.urlencode(query)}"
        content_type = request.headers.get("Content-Type", "application/octet-stream")
        store.request("POST", path, body, {"Content-Type": content_type})
        answer = store.getresponse()
        content = answer.read()
        store.close()
        if answer.status != 200:
            request.answer(proxy.Answer(answer.status, [XML], content))
            return
        stored = json.loads(content)
        headers = [("ETag", f'"{stored["etag"]}"'), ("x-goog-generation", stored["generation"])]
        if complete:
            self.say(request, "CompleteMultipartUploadResult", f"<ETag>{stored['etag']}</ETag>", *headers)
        else:
            request.answer(proxy.Answer(200, headers, b""))

    def say(self, request: proxy.Request, element: str, content: str, *headers: tuple[str, str]) -> None:
        request.answer(proxy.Answer(200, [XML, *headers], f"<{element}>{content}</{element}>".encode()))


def without(listed: proxy.Answer, start: bytes) -> proxy.Answer:
    """The listing without the objects up to `start`."""
    def kept(entry: re.Match) -> bytes:
        key = KEY.search(entry[0])
        return entry[0] if key and key[1] > start else b""

    return proxy.Answer(listed.status, listed.headers, CONTENTS.sub(kept, listed.body))


if __name__ == "__main__":
    print(f"listening at {Translator(*sys.argv[1:]).url}", flush=True)
    threading.Event().wait()

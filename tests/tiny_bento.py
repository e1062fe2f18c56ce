"""A process that stands in for a Bento: ``/readyz``, ``/livez`` and ``/v2``, with faults on demand.

Run as ``python tests/tiny_bento.py TAG HOST PORT``. The tag is ``NAME:VERSION`` with words behind dots that say how
it behaves: ``support:2.broken`` answers 500 to every inference, ``.slow`` after 0.3 s, ``.dead`` never starts,
``.unsure`` gives low scores. Only the standard library, so that it starts at once.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def main(tag: str, host: str, port: str) -> None:
    name, _, rest = tag.partition(":")
    version, *traits = rest.split(".")
    if "dead" in traits:
        raise SystemExit("dead on arrival")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"version": version, "name": name})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
            if "slow" in traits:
                time.sleep(0.3)
            if "broken" in traits:
                self._answer(500, {"error": "broken on purpose"})
                return
            self._answer(200, self._inference(body))

        def _inference(self, body: dict[str, Any]) -> dict[str, Any]:
            count = len(body["inputs"][0]["data"])
            score = 0.55 if "unsure" in traits else 0.95
            outputs = [
                {"name": "label", "datatype": "BYTES", "shape": [count], "data": ["a"] * count},
                {"name": "score", "datatype": "FP32", "shape": [count], "data": [score] * count},
                {"name": "abstain", "datatype": "BOOL", "shape": [count], "data": [False] * count},
            ]
            return {"model_name": name, "model_version": version, "id": body.get("id"), "outputs": outputs}

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

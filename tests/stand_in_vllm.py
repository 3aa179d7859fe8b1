"""A command with the options of vLLM's server, for tests of who starts and ends it: `python -m tests.stand_in_vllm`.

It has a child process, as vLLM has its engine's, and says what it knows of itself in the model's name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--served-model-name", "--host", "--port", "--fail", "--pids"):
        parser.add_argument(name)
    parser.add_argument("--hang", action="store_true")
    options = parser.parse_args()
    if options.fail:
        print("loading the model")
        sys.exit(f"ValueError: {options.fail}")
    if options.hang:
        print("downloading", flush=True)
        time.sleep(60)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    if options.pids:
        with open(options.pids, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {child.pid}")
    key = os.environ["VLLM_API_KEY"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != f"Bearer {key}":
                return self.answer(401, {})
            message = {"role": "assistant", "content": "Score: 1"}
            return self.answer(200, {"choices": [{"message": message}], "model": options.served_model_name})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()


if __name__ == "__main__":
    main()

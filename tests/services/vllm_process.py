"""A real vLLM API server on loopback, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server_command(model: Path, port: int, *options: str) -> list[str]:
    """The `vllm` command itself fails with the CPU package; the module runs with either."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", "512", "--max-num-seqs", "16", "--enforce-eager", "--disable-uvicorn-access-log", *options,
    ]  # fmt: skip


SERVER_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


class VLLMProcess:
    """Starts a server in a process group of its own and waits until it answers."""

    def __init__(self, model: Path, log: Path, *options: str, **variables: str) -> None:
        """options: after the default ones, which they overrule. variables: of its environment."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
        environment |= SERVER_ENVIRONMENT | variables
        with log.open("w") as output:
            self.process = subprocess.Popen(
                server_command(model, self.port, *options), stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._wait(deadline=time.monotonic() + 240)

    def signal(self, number: int) -> None:
        """To every process of the server: the API server and its engine."""
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.wait()

    def _wait(self, deadline: float) -> None:
        while True:
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    log = self.log.read_text()  # the engine's own error stands far above the API server's last words
                    errors = [line for line in log.splitlines() if "Error" in line]
                    raise RuntimeError("\n".join(["the server did not start:", *errors[:20], log[-2000:]])) from None
                time.sleep(0.3)

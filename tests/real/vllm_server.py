"""The development server of deployments/vllm for tests: a real vLLM with a tiny random model, which tests may stop and kill."""

import os
import signal
import subprocess
from pathlib import Path

from ..command import free_port

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
DEV = ROOT / "deployments/vllm/dev.py"


class VllmServer:
    """One server, at the same address after each start. With a ``key``, requests need it."""

    model = "tiny"

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder / f"server-{self.port}.log"
        self._key = key
        self._group = 0

    def start(self, *flags: str) -> None:
        """Start the server and wait until it answers, which takes half a minute to a minute. ``flags`` are vLLM's."""
        self._run("start", "--model-name", self.model, "--log", str(self.log), "--", *flags)
        self._group = int((self.folder / f"server-{self.port}.pid").read_text())

    def stop(self) -> None:
        """Stop the server and wait until all its processes are gone. Does nothing if it is not running."""
        self._run("stop")

    def kill_api(self) -> None:
        """Kill the process that answers requests, by SIGKILL; its other processes stay."""
        os.kill(self._group, signal.SIGKILL)

    def kill_engine(self) -> None:
        """Kill the process that schedules requests, by SIGKILL. The server notices it, answers 500, and ends."""
        [engine] = [number for number, name in self.processes().items() if name.startswith("VLLM::EngineCor")]
        os.kill(engine, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """The living processes of the last start: number -> the first fifteen letters of the name, as Linux keeps it."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue  # gone meanwhile
            state, _, group, *_ = fields.split()
            # A dead process that was not waited for still has a number.
            if int(group) == self._group and state not in "ZX":
                found[int(folder.name)] = name
        return found

    def _run(self, command: str, *more: str) -> None:
        variables = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"} | ({"VLLM_API_KEY": self._key} if self._key else {})
        arguments = [str(PYTHON), str(DEV), command, str(self.folder), "--port", str(self.port), *more]
        done = subprocess.run(arguments, capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

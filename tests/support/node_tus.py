"""tus-js-client on Node: the client of browsers, with a list of workers."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.reasons import NO_NODE

_PACKAGE: Final = "tus-js-client@4.3.1"
_INSTALL_S: Final = 120
_PROGRAM: Final = """
import { readFileSync } from 'node:fs';
import tus from 'tus-js-client';

const [file, chunk, ...workers] = process.argv.slice(2);
const data = readFileSync(file);
let path, turn = 0, breaks = 0;

function push() {
  const worker = workers[turn % workers.length];
  const upload = new tus.Upload(data, {
    endpoint: worker + '/files/',
    uploadUrl: path && worker + path,
    chunkSize: Number(chunk),
    retryDelays: null,
    metadata: { tenant: 'acme' },
    onChunkComplete: (_, offset) => {
      path = new URL(upload.url).pathname;
      console.log(JSON.stringify({ offset, worker, path }));
    },
    onError: () => { turn += 1; breaks += 1; setTimeout(push, 100); },
    onSuccess: () => console.log(JSON.stringify({ done: true, breaks, path: new URL(upload.url).pathname })),
  });
  upload.start();
}
push();
"""


def program() -> Path:
    """Install the client if need be; return what runs it. A test is skipped where that is not possible."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(NO_NODE)
    base = os.environ.get("XDG_CACHE_HOME")
    place = (Path(base) if base else Path.home() / ".cache") / "holdfast" / "tus-js-client"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "node_modules" / "tus-js-client").exists():
            command = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(place), _PACKAGE]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_S)
            except (OSError, subprocess.SubprocessError):
                pytest.skip(NO_NODE)
        script = place / "push.mjs"
        script.write_text(_PROGRAM, encoding="utf-8")
    return script


def push(
    script: Path, file: Path, chunk: int, workers: Sequence[str], told: Callable[[str], None], timeout: float
) -> str:
    """Push a file to whichever worker answers; ``told`` gets each line. Returns the last one."""
    command = ["timeout", str(timeout), "node", str(script), str(file), str(chunk), *workers]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line
                told(line)
        finally:
            process.terminate()
    return last

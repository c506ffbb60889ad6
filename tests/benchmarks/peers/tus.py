"""The official tus server, on Node: it answers when it has written, without waiting for the disk."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.benchmarks.peers.engines import Absent, alone, run

NAME: Final = "the official tus server on Node"
_PACKAGES: Final = ("@tus/server@2.4", "@tus/file-store@2.1")
_PROGRAM: Final = """
import { Server } from '@tus/server';
import { FileStore } from '@tus/file-store';

const server = new Server({ path: '/files', datastore: new FileStore({ directory: process.argv[2] }) });
const listening = server.listen({ host: '127.0.0.1', port: 0 }, () => console.log(listening.address().port));
"""


def prepare(tools: Path) -> Path:
    """Install it if need be; return its program."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Absent(f"there is no {program} on the search path")
    place = tools / "tus"
    script = place / "server.mjs"
    with alone(tools):
        if not script.exists():
            place.mkdir(exist_ok=True)
            run(["npm", "install", "--silent", "--prefix", str(place), *_PACKAGES], "installing @tus/server")
            script.write_text(_PROGRAM, encoding="utf-8")
    return script


@contextmanager
def serving(script: Path, files: Path) -> Iterator[tuple[str, int]]:
    """Run it on an empty directory; yields its address and its process."""
    files.mkdir()
    process = subprocess.Popen(["node", str(script), str(files)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(files)

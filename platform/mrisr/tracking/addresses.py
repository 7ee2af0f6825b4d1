"""Checks of a tracking address within seconds, before any work, with one-line errors.

MLflow itself waits for minutes, creates what it does not find, and shows passwords in its tracebacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mrisr.tracking.availability import first_line, within
from mrisr.tracking.redaction import mask_secrets, remember
from mrisr.tracking.relocation import relocate

CHECK_S = 20.0
SERVED = ("http:", "https:", "databricks")  # the server decides where artifacts go
_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "psycopg[binary]",
    "MySQLdb": "mysqlclient (or pymysql, and write mysql+pymysql://)",
}
_STATUS = {
    401: "it wants a user and a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or check them",
    403: "this user may not use it; ask its administrator, or use another user",
    404: "it answers, but not as MLflow; check the address, its port and its path",
}


class AddressError(ValueError):
    """An unusable tracking address. The message names the address, without secrets, and the remedy."""


class AddressUnreachable(AddressError):
    """A tracking address where no server answers now."""


def check_address(uri: str, creates: bool = False) -> None:
    """Raise AddressError if the tracking server or database cannot be used, after at most CHECK_S seconds.

    uri: from `resolve_uri`. creates: accept a missing database, because the caller creates it. If a database's folder
    was moved together with its artifacts, their new place is written into it.
    """
    remember(uri)
    place = f"tracking URI {mask_secrets(uri)}"
    file = database_file(uri)
    if file is not None and not file.exists():
        if creates:
            return
        raise AddressError(
            f"{place}: no such database; check the path, or make it with `mrisr train`, which creates it"
        )
    try:
        within(CHECK_S, lambda: _ask_server(uri) if uri.startswith(SERVED) else _ask_database(uri, place, creates))
        if file is not None:
            relocate(file)
    except AddressError:
        raise
    except ImportError as error:
        raise AddressError(f"{place}: {missing_driver(error)}") from None
    except Exception as error:  # MLflow, SQLAlchemy, a driver and requests each raise their own
        raise _explained(error, place) from None


def missing_driver(error: ImportError) -> str:
    package = _PACKAGES.get(error.name or "", error.name or str(error))
    return f"its database driver is not installed; pip install {package}"


def database_file(uri: str) -> Path | None:
    """The file of an sqlite address from `resolve_uri`; None for any other address."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def _explained(error: Exception, place: str) -> AddressError:
    import sqlalchemy.exc as sql

    status = getattr(error, "get_http_status_code", lambda: None)()
    cause: BaseException = error
    while (within_it := cause.__cause__ or cause.__context__) is not None:
        cause = within_it
    text, reason = str(error), first_line(cause)
    for code, meaning in _STATUS.items():
        phrase = HTTPStatus(code).phrase  # in an answer that is JSON, but not MLflow's
        if f"error code {code}" in text or phrase in text or (status == code and "error code" not in text):
            return AddressError(f"{place}: the server answers {code} {phrase}: {meaning}")
    if "valid JSON format" in text:
        return AddressError(f"{place}: {_STATUS[404]}")
    unreadable = isinstance(error, sql.NoSuchModuleError | sql.ArgumentError) or type(error) is ValueError
    if unreadable or type(error).__name__ == "InvalidUrlException":
        return AddressError(
            # Without the library's message, which may quote a part of the password as a port.
            f"{place}: is not an address that MLflow reads; write http://HOST:5000, sqlite:////PATH/mlflow.db or "
            "postgresql://USER:PASSWORD@HOST/NAME, with %2F for / and %40 for @ in the password"
        )
    if "not a database" in text:
        return AddressError(f"{place}: is not a database; give the path of an mlflow.db")
    if isinstance(error, PermissionError) or "unable to open" in text or "readonly database" in text:
        return AddressError(f"{place}: cannot be opened ({reason}); check its permissions and those of its folder")
    return AddressUnreachable(f"{place}: cannot be reached ({reason}); start the server, or correct the address")


def _ask_server(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    with _few_retries():
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


@contextmanager
def _few_retries() -> Iterator[None]:
    """Limit MLflow to one retry; its seven retries take four minutes."""
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    before = {key: os.environ.get(key) for key in short}
    os.environ.update(short)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _ask_database(uri: str, place: str, creates: bool) -> None:
    import sqlalchemy
    from alembic.script import ScriptDirectory
    from mlflow import __version__ as ours
    from mlflow.store import db_migrations

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        tables: list[Any] = sqlalchemy.inspect(connection).get_table_names()
        found = [row[0] for row in connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))] \
            if "alembic_version" in tables else []  # fmt: skip
    if "experiments" not in tables:
        if creates:
            return
        raise AddressError(f"{place}: holds no MLflow tables; check the name, or make them with `mrisr train`")
    expected = ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_current_head()
    if found != [expected]:
        raise AddressError(
            f"{place}: is of another MLflow version: its schema is {', '.join(found) or 'unknown'}, MLflow {ours} has "
            f"{expected}. If it is older, back it up and run `mlflow db upgrade {mask_secrets(uri)}`; if it is newer, "
            "install the MLflow that made it"
        )

"""A database that was moved together with its artifacts gets their new place.

MLflow stores absolute artifact locations and has no public way to change them. Only this file writes into MLflow's
tables: in one transaction, and only existing columns.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def relocate(database: Path) -> int:
    """Change the prefix of artifact locations below a renamed folder. Returns the number of changed locations.

    database: an sqlite file of MLflow. A run's artifacts count as moved if their recorded folder does not exist and the
    same path, with the run's id in it, exists below the database's folder. So a copy of a home whose original exists
    changes nothing. Raises sqlite3.OperationalError if the database cannot be written.
    """
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        moves = _moves(connection, database.absolute().parent)
    if not moves:
        return 0
    changed = 0
    with FileLock(f"{database}.lock"), closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in _LOCATIONS.items():
            present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in present.intersection(columns):
                for old, new in moves.items():
                    changed += connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    ).rowcount
    return changed


def _moves(connection: sqlite3.Connection, folder: Path) -> dict[str, str]:
    """Old prefix -> new prefix, both as they stand in locations."""
    moves: dict[str, str] = {}
    for run_id, location in connection.execute("SELECT run_uuid, artifact_uri FROM runs ORDER BY start_time DESC"):
        if not location or any(location.startswith(f"{old}/") for old in moves):
            continue
        path = location.removeprefix("file://")
        if not path.startswith("/") or Path(unquote(path)).exists():
            continue
        parts = location.split("/")
        for first in range(1, parts.index(run_id) + 1 if run_id in parts else 0):
            suffix = "/".join(parts[first:])
            if (folder / unquote(suffix)).exists():
                new = folder.as_uri() if location.startswith("file:") else str(folder)
                moves["/".join(parts[:first])] = new
                break
    return moves

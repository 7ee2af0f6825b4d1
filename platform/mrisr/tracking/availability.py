"""Whether a failing MLflow is unreachable or refuses, and calls with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mrisr.tracking.redaction import mask_message

_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow refused the call (for example because the run is deleted), so that waiting is useless."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message, without secrets."""
    # Mask before cutting: a part of an address cannot be parsed.
    return mask_message(f"{type(error).__name__}: {error}").splitlines()[0][:200]


def within(seconds: float, action: Callable[[], None]) -> None:
    """Run `action` in a thread. Raises TimeoutError if it takes longer; the thread then continues alone. MLflow's own
    limits are minutes: seven retries of a server, 20 s for a lock of sqlite.
    """
    import mlflow.tracking  # noqa: F401  before the clock starts: the import takes seconds

    ended: list[Exception | None] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, name="mlflow-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if ended[0] is not None:
        raise ended[0]

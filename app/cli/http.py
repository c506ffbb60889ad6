"""Questions to a worker over HTTP, for commands that are not inside of one."""

import json
import urllib.error
import urllib.request
from typing import Any, Final

from app.client.cluster import find_workers
from app.errors import ConfigurationError, HoldfastError, UnavailableError
from app.settings import Settings

_TIMEOUT_S: Final = 15.0
# The workers are this machine's or the cluster's own: a proxy of the environment knows nothing of them.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """Ask the workers of the cluster in turn until one answers; return the object.

    Args:
        settings: where the cluster is.
        path: percent-encoded, from ``/api`` on.

    Raises:
        BrokerUnreachableError: no broker tells who the workers are.
        ConfigurationError: the workers want a token.
        UnavailableError: no worker is there, or none can answer now.
        HoldfastError: the answer is an error; its message.
    """
    failure = UnavailableError(
        f"no worker is in the group {settings.namespace}.workers: start one with `holdfast up` or `holdfast worker`",
        retry_after_s=5,
    )
    for worker in find_workers(settings):
        try:
            return _get(f"{worker.url}{path}", settings)
        except UnavailableError as error:
            failure = UnavailableError(f"worker {worker.name}: {error.reason}", retry_after_s=error.retry_after_s)
    raise failure


def _get(url: str, settings: Settings) -> dict[str, Any]:
    token = settings.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}".encode().decode("latin-1")} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - a worker's own http address.
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as reply:
            answered = json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            raise _translate(error.code, error.read()) from None
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UnavailableError(f"{url} does not answer ({reason})", retry_after_s=1) from None
    if not isinstance(answered, dict):
        raise HoldfastError(f"{url} answers something else than a worker would: is HOLDFAST_ADVERTISED_URL right?")
    return answered


def _translate(status: int, body: bytes) -> HoldfastError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"answered with HTTP status {status}"
    if status == 401:
        return ConfigurationError("the workers want a token: set HOLDFAST_TOKEN")
    if status in (502, 503, 504):
        return UnavailableError(message, retry_after_s=1)
    return HoldfastError(message)

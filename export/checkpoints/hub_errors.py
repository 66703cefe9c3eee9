"""What went wrong with the Hugging Face hub, in one line: the hub's own reason, and what to do."""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# What a request to the hub raises. ValueError: the response is not the JSON that it should be.
HUB_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled, ValueError)

_MAX_REASON = 300  # characters
_TOKENS = "https://huggingface.co/settings/tokens"


def explain(error: Exception, repository: str) -> str:
    """One of HUB_ERRORS, about a repository, as one line."""
    match error:
        case HfHubHTTPError():
            return _explain_answer(error, repository)
        case httpx2.HTTPError() | OfflineModeIsEnabled():
            return f"{HfApi().endpoint} is out of reach: {_first_line(error)}{_advice_on_connections(error)}"
    page = "the login page of a network or proxy"
    return f"{HfApi().endpoint} answers something else than the hub does, such as {page}{_through_proxy()}"


def can_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return not isinstance(error, GatedRepoError) and error.response.status_code not in (401, 404)
    return isinstance(error, httpx2.TransportError)


def _explain_answer(error: HfHubHTTPError, repository: str) -> str:
    status, reason = error.response.status_code, _reason(error)
    said = f" (the hub says: {reason})" if " " in reason else ""  # else it is the code that was read already
    if status == 401 and get_token() and _is_about_token(error, reason):
        return (
            f"the hub does not accept the token{said}: make another at {_TOKENS}, then `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, GatedRepoError):
        how = f"accept its licence at https://huggingface.co/{repository}"
        if get_token() is None:
            how += ", then log in with `hf auth login` or set HF_TOKEN"
        return f"access is not granted: {how}{said}"
    if isinstance(error, RevisionNotFoundError):
        return f"it no longer has the commit of the first run{said}: download into another folder"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository, or a private one{'' if get_token() else ', and no token to log in with'}{said}"
    reason = reason or error.response.reason_phrase
    return f"the hub answers {status}: {reason}{_advice_on_status(error.response)}"


def _is_about_token(error: HfHubHTTPError, reason: str) -> bool:
    is_about_repository = error.response.headers.get("X-Error-Code") in ("RepoNotFound", "GatedRepo")
    return not is_about_repository or re.search("token|credential", reason, re.IGNORECASE) is not None


def _advice_on_status(response: httpx2.Response) -> str:
    status = response.status_code
    if status == 429:
        seconds = response.headers.get("Retry-After") or _seconds_to_reset(response)
        return f"; too many requests, try again {f'in {seconds} s' if seconds else 'later'}"
    if status in (401, 403):
        log_in = "log in with `hf auth login` or set HF_TOKEN"
        return f"; see what the token may do at {_TOKENS}" if get_token() else f"; {log_in}"
    if status == 407:
        return f"; the proxy wants a user and a password in its address{_through_proxy()}"
    return "; try again later" if status >= 500 else ""


def _seconds_to_reset(response: httpx2.Response) -> str | None:
    """Of the header `RateLimit: "api";r=0;t=55`."""
    reset = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", ""))
    return reset[1] if reset else None


def _advice_on_connections(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{_through_proxy()}; set SSL_CERT_FILE to the certificates of your network's proxy, if it has its own"
    return _through_proxy()


def _through_proxy() -> str:
    """That the environment sends requests through a proxy, if it does. Its address may have a password."""
    endpoint = urlsplit(HfApi().endpoint)
    proxies = getproxies()
    if proxy_bypass(endpoint.netloc):
        return ""
    name = next((name for name in (endpoint.scheme, "all") if name in proxies), None)
    return f" (through the proxy of {name.upper()}_PROXY)" if name else ""


def _reason(error: HfHubHTTPError) -> str:
    reason = " ".join((error.server_message or "").split())
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

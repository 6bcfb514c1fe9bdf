"""HTTP to a vLLM server: every answer but success is an error that carries the status and the body."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from research.errors import SamplerError

SHOWN = 600  # characters of a body that an error message quotes


class HTTPStatusError(SamplerError):
    """An answer outside 2xx."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status, self.body = status, body


class ServerClient:
    """One server. timeout: seconds of silence after which a request has failed."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/").removesuffix("/v1"), timeout

    def get(self, path: str, timeout: float | None = None) -> Any:
        """The decoded JSON of an answer (its text if it is none). Raises SamplerError."""
        return self._send("GET", path, None, timeout)

    def post(self, path: str, body: Any = None, timeout: float | None = None, **query: str) -> Any:
        """As `get`, sending `body` as JSON."""
        return self._send("POST", path + ("?" + urllib.parse.urlencode(query) if query else ""), body, timeout)

    def _send(self, method: str, path: str, body: Any, timeout: float | None) -> Any:
        seconds = timeout or self.timeout
        data = json.dumps({} if body is None else body).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {token}"
        try:
            request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            message = f"{method} {self.url}{path} answered {error.code}: {text[:SHOWN]}"
            raise HTTPStatusError(message, error.code, text) from error
        except TimeoutError as error:
            raise self._silent(method, path, seconds) from error
        except (OSError, ValueError) as error:  # URLError is an OSError; ValueError is a malformed URL
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise self._silent(method, path, seconds) from error
            raise SamplerError(
                f"{method} {self.url}{path} failed: the server does not answer or died ({error})"
            ) from error
        except Exception as error:  # http.client's own: a connection cut in mid-answer
            raise SamplerError(f"{method} {self.url}{path} broke off: {type(error).__name__} {error}") from error
        try:
            return json.loads(text) if text else None
        except json.JSONDecodeError:
            return text

    def _silent(self, method: str, path: str, seconds: float) -> SamplerError:
        return SamplerError(
            f"{method} {self.url}{path}: no answer within {seconds:g} s; it hangs, or needs longer (sampler.timeout)"
        )

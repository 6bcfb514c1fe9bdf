"""Seeds of prompts, refused requests, the speed watch, and a client whose server is not there."""

from __future__ import annotations

import socket
import threading
import time
import warnings

import pytest

from research.errors import ConfigurationError, SamplerError
from research.sampling import vllm_engine
from research.sampling.interface import SamplingParams
from research.sampling.requests import check_request, prompt_seeds
from research.sampling.server_client import HTTPStatusError, ServerClient
from research.sampling.watch import SpeedWatch


def test_seeds_follow_the_prompt_and_not_its_place():
    params = SamplingParams(seed=3)
    first = prompt_seeds([[1, 2], [3], [1, 2]], params)
    assert len(set(first)) == 3
    assert prompt_seeds([[3], [1, 2]], params) == [first[1], first[0]]
    assert prompt_seeds([[3]], SamplingParams(seed=4)) != [first[1]]


@pytest.mark.parametrize(
    ("prompts", "n", "tokens", "message"),
    [([[]], 1, 1, "empty"), ([[1] * 8], 1, 1, "no room"), ([[1]], 0, 1, "n=0"), ([[1]], 1, 0, "max_tokens=0")],
)
def test_impossible_requests_are_refused(prompts, n, tokens, message):
    check_request([[1] * 7], 1, SamplingParams(max_tokens=9), context=8)
    with pytest.raises(ValueError, match=message):
        check_request(prompts, n, SamplingParams(max_tokens=tokens), context=8)


def test_speed_watch_warns_after_a_sync_only_and_compares_like_with_like():
    watch = SpeedWatch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            watch.generated(64, 100_000, 1.0)
        watch.synced()
        watch.generated(64, 80_000, 1.0)  # a fifth slower: noise
        watch.generated(2, 5_000, 1.0)  # a small batch is slow by nature
        watch.generated(64, 100, 1.0)  # too short to say
    with pytest.warns(RuntimeWarning, match=r"fell from 100000 to 4000 tokens/s after a weight sync"):
        watch.generated(64, 4_000, 1.0)


def test_vllm_that_is_not_installed_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'research\[vllm\]'.*sampler=transformers"):
        vllm_engine.VLLMSampler("anywhere")


def answering(answer: bytes | None):
    """A socket that reads one request and answers with these bytes, or never."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = server.accept()
        connection.recv(65536)
        if answer is None:
            time.sleep(3)
        else:
            connection.sendall(answer)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_error_carries_status_and_body():
    body = b'{"error": "already loaded, set load_inplace"}'
    url = answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    with pytest.raises(
        HTTPStatusError, match=r"POST .*/v1/x answered 400: .*already loaded, set load_inplace"
    ) as caught:
        ServerClient(url, 5).post("/v1/x", {})
    assert caught.value.status == 400


def test_a_silent_server_is_an_error_in_time():
    start = time.monotonic()
    with pytest.raises(SamplerError, match=r"no answer within 0\.5 s"):
        ServerClient(answering(None), 0.5).get("/health")
    assert time.monotonic() - start < 2


def test_an_answer_cut_short_is_an_error():
    url = answering(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half":')
    with pytest.raises(SamplerError, match="broke off"):
        ServerClient(url, 5).get("/health")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "not-a-url"])
def test_a_server_that_is_not_there_is_an_error(url):
    with pytest.raises(SamplerError, match="does not answer"):
        ServerClient(url, 5).get("/health")

"""What stands before the application: rate limits, small bodies, no foreign origins or hosts, strict headers."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from typing import Any, Callable, Collection
from urllib.parse import urlsplit

__all__ = ['Bucket', 'Guard']

_BODY = 16 * 1024
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    'content-security-policy': _POLICY,
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',  # links are secrets
    'cross-origin-resource-policy': 'same-origin',
    'cross-origin-opener-policy': 'same-origin',
    'x-robots-tag': 'noindex',
}
_CLIENTS = 10_000  # remembered at most


class Bucket:
    """A token bucket for each client.

    Args:
        rate: requests a second in the long run.
        burst: requests at once.
        clock: seconds.

    >>> bucket = Bucket(1, 2, clock=lambda: 0.0)
    >>> [bucket.wait('me') for _ in range(3)]
    [0.0, 0.0, 1.0]
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take one token; seconds to wait where there is none, else 0."""
        now = self.clock()
        level, before = self._levels.pop(client, (self.burst, now))
        level = min(self.burst, level + (now - before) * self.rate)
        allowed = level >= 1
        self._levels[client] = (level - allowed, now)
        while len(self._levels) > _CLIENTS:
            self._levels.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self.rate


class Guard:
    """ASGI middleware.

    Args:
        app: behind it.
        hosts: names that the server answers to; empty: any.
        origins: 'host:port' that pages come from beside the host asked for, such as that of a proxy.
        rate: requests a second for each client address; bursts of ten seconds' worth. 0: no limit.
        joins: new raters a minute for each client address. 0: no limit.
    """

    def __init__(
        self,
        app: Any,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        rate: float = 30,
        joins: float = 20,
    ):
        self.app, self.hosts, self.origins = app, frozenset(hosts), frozenset(origins)
        self._requests = Bucket(rate, 10 * rate) if rate else None
        self._joins = Bucket(joins / 60, joins) if joins else None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        headers = {name.decode('latin-1').lower(): value.decode('latin-1') for name, value in scope['headers']}

        async def sealed(message: dict[str, Any]) -> None:
            if message['type'] == 'http.response.start':
                given = {name for name, _ in message['headers']}
                more = [(k.encode(), v.encode()) for k, v in {**_HEADERS, 'cache-control': 'no-store'}.items()]
                message = {**message, 'headers': [*message['headers'], *(p for p in more if p[0] not in given)]}
            await send(message)

        refusal = self._refusal(scope, headers)
        body = b''
        if refusal is None and scope['method'] == 'POST':
            body, refusal = await _read(receive)
        if refusal is not None:
            await _refuse(sealed, *refusal)
            return
        await self.app(scope, _replay(body, receive), sealed)

    def _refusal(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        """(status, why, headers) of a request that goes no further."""
        client = (scope.get('client') or ('',))[0]
        wait = self._requests.wait(client) if self._requests else 0.0
        post = scope['method'] == 'POST'
        if not wait and post and scope['path'].endswith('/raters') and self._joins:
            wait = self._joins.wait(client)
        if wait:
            return 429, 'too many requests', {'retry-after': str(math.ceil(wait))}
        host = headers.get('host', '')
        if self.hosts and _name(host) not in self.hosts:
            return 400, 'not a host of this server', {}
        if post and not self._same_origin(headers, host):
            return 403, 'requests from other sites are refused', {}
        if post and headers.get('content-type', '').partition(';')[0].strip().lower() != 'application/json':
            return 415, 'application/json expected', {}
        return None

    def _same_origin(self, headers: dict[str, str], host: str) -> bool:
        """No form or script of another site can send it: browsers name the origin of every POST."""
        if headers.get('sec-fetch-site', 'same-origin') not in ('same-origin', 'none'):
            return False
        origin = headers.get('origin')
        return origin is None or urlsplit(origin).netloc in (host, *self.origins)


def _name(netloc: str) -> str:
    """The host without its port."""
    return netloc.rpartition(']')[0] + ']' if netloc.startswith('[') else netloc.partition(':')[0].lower()


async def _read(receive: Any) -> tuple[bytes, tuple[int, str, dict[str, str]] | None]:
    body, more = b'', True
    while more:
        message = await receive()
        body += message.get('body', b'')
        more = message.get('more_body', False)
        if len(body) > _BODY:
            return b'', (413, 'too large', {})
    return body, None


def _replay(body: bytes, receive: Any) -> Any:
    sent = False

    async def again() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {'type': 'http.request', 'body': body, 'more_body': False}

    return again


async def _refuse(send: Any, status: int, why: str, headers: dict[str, str]) -> None:
    body = json.dumps({'detail': why}).encode()
    pairs = {'content-type': 'application/json', 'content-length': str(len(body)), **headers}
    start = {'type': 'http.response.start', 'status': status}
    await send({**start, 'headers': [(k.encode(), v.encode()) for k, v in pairs.items()]})
    await send({'type': 'http.response.body', 'body': body})

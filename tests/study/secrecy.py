"""Words in all the ways in which a response could hold them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Iterable
from urllib.parse import quote


def forms(word: str) -> set[bytes]:
    """A word as it is, backwards, hashed, in hex, UTF-16, base64 at each offset, and escaped for addresses, HTML, JSON."""
    raw = word.encode()
    found = {raw, raw[::-1], word.encode('utf-16-le'), raw.hex().encode()}
    found |= {quote(word, safe='').encode(), ''.join(f'%{byte:02x}' for byte in raw).encode()}
    found |= {html.escape(word).encode(), ''.join(f'&#{ord(c)};' for c in word).encode()}
    found |= {json.dumps(word)[1:-1].encode(), ''.join(f'\\u{ord(c):04x}' for c in word).encode()}
    for kind in ('md5', 'sha1', 'sha256'):
        found.add(hashlib.new(kind, raw).hexdigest().encode())
    for before in range(3):  # what the bytes around the word do not change
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        found |= {encode(b'-' * before + raw)[first:last] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return found


class Words:
    """Words that may stand nowhere.

    Args:
        words: also looked for in lower and upper case.
    """

    def __init__(self, words: Iterable[str]):
        self._forms = {form: w for w in words for same in (w, w.lower(), w.upper()) for form in forms(same)}

    def found(self, data: bytes) -> set[str]:
        """Those that are in some bytes."""
        lower = data.lower()
        return {word for form, word in self._forms.items() if form in data or form.lower() == form and form in lower}

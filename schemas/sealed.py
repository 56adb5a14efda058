"""JSON objects on disk whose last field is the SHA-256 of everything before it.

A file that holds the checksums of others needs one of its own. The digest is taken over bytes and
not over values, so that it tells a flipped bit anywhere, in white space too, and needs no agreement
on how numbers are written.
"""

import hashlib
import re

FIELD = "digest"
_TAIL = re.compile(rb',\n  "digest": "([0-9a-f]{64})"\n}\n\Z')


def digest_of(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def seal(text: str) -> str:
    """Append the digest of `text`, an indented JSON object with a field and a last line break."""
    if not text.endswith("\n}\n"):
        raise ValueError("only an indented JSON object with a line break after it can be sealed")
    return f'{text[:-3]},\n  "{FIELD}": "{digest_of(text)}"\n}}\n'


def unseal(data: bytes) -> str:
    """The text that was sealed.

    Raises:
        ValueError: no digest at the end, or not that of these bytes.
    """
    tail = _TAIL.search(data)
    if tail is None:
        raise ValueError("no digest at its end")
    body = data[: tail.start()] + b"\n}\n"
    if hashlib.sha256(body).hexdigest() != tail[1].decode():
        raise ValueError("its bytes are not those of its digest")
    return body.decode()

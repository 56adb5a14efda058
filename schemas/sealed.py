"""JSON objects on disk whose last field is the SHA-256 of everything before it.

A file that holds the checksums of others needs one of its own. The digest is taken over bytes and
not over values, so that it tells a flipped bit anywhere, in white space too, and needs no agreement
on how numbers are written.
"""

import hashlib
import re

FIELD = "digest"
_LINE_TAIL = re.compile(rb', "digest": "([0-9a-f]{64})"}\Z')
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
    return _sealed_text(data, tail, b"\n}\n")


def seal_line(text: str) -> str:
    """The same for an object on one line, as `json.dumps` writes it; without the line break."""
    return f'{text[:-1]}, "{FIELD}": "{digest_of(text)}"}}'


def unseal_line(line: bytes) -> str:
    """The text that was sealed; a line without a digest as it is, since earlier commits wrote none.

    Raises:
        ValueError: the digest is not that of these bytes, or they are no UTF-8.
    """
    tail = _LINE_TAIL.search(line)
    if tail is None:
        return line.decode()
    return _sealed_text(line, tail, b"}")


def _sealed_text(data: bytes, tail: re.Match[bytes], end: bytes) -> str:
    """The text whose digest `tail` holds, with its own end again."""
    body = data[: tail.start()] + end
    if hashlib.sha256(body).hexdigest() != tail[1].decode():
        raise ValueError("its bytes are not those of its digest")
    return body.decode()

import pytest

from schemas.storage.url import is_url


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/a", True),
        ("GS://bucket", True),
        ("hdfs+x://host/a", True),
        ("s3:/bucket/a", False),
        ("/data/s3://bucket", False),
        ("3s://bucket", False),
        ("a b://c", False),
        ("", False),
    ],
)
def test_urls_begin_with_a_scheme(path: str, remote: bool) -> None:
    assert is_url(path) == remote

import gzip

import pytest

from gateway.transport.fast.compression import BadCompression, TooLarge, gunzip


def test_what_was_compressed_comes_out() -> None:
    assert gunzip(gzip.compress(b"abc" * 1_000), 3_000) == b"abc" * 1_000
    assert gunzip(gzip.compress(b""), 1) == b""


def test_more_than_allowed_does_not_come_out() -> None:
    with pytest.raises(TooLarge):
        gunzip(gzip.compress(bytes(3_001)), 3_000)


WRONG = {
    "nothing": b"",
    "junk": b"x",
    "cut off": gzip.compress(b"abc")[:-1],
    "more behind it": gzip.compress(b"abc") + b"x",
    "two members": gzip.compress(b"a") * 2,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_one_gzip_member_is_refused(case: str) -> None:
    with pytest.raises(BadCompression):
        gunzip(WRONG[case], 1_000)

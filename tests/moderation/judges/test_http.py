from pathlib import Path

import pytest

from extproc.moderation.judges.http import Endpoint
from extproc.moderation.types import JudgeFailed


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    """A file of certificates that is not there is known when the judge is made."""
    with pytest.raises(OSError, match="No such file"):
        Endpoint("https://example.com", ca=tmp_path / "ca.pem")


async def test_a_url_with_a_password() -> None:
    """Errors do not quote the URL, which may have a password in it."""
    endpoint = Endpoint("http://user:sesame@127.0.0.1:1")
    with pytest.raises(JudgeFailed) as failed:
        await endpoint.post("/moderations", {}, dict)
    await endpoint.close()

    assert "sesame" not in repr(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__

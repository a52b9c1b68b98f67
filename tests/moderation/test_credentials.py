"""Secrets in text."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.moderation.credentials import Credentials
from extproc.moderation.types import Match

BODY = base64.b64encode(bytes(range(256)) * 5).decode()
LINES = "\n".join(BODY[place : place + 64] for place in range(0, len(BODY), 64))
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{LINES}\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
GITHUB = "ghp_abcdefghijABCDEFGHIJ0123456789abcdef"
SECRETS = (
    ("api_key", "sk-abcDEF1234567890abcDEF12"),
    ("api_key", "sk-proj-Ab3_dE5-fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5z"),
    ("api_key", "sk-ant-api03-Ab3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5z"),
    ("api_key", "AKIAIOSFODNN7EXAMPLE"),
    ("api_key", "LTAI5tAbCdEfGhIjKlMnOpQr"),
    ("api_key", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
    ("api_key", "sk_live_4eC39HqLyjWDarjtT1zdp7dc"),
    ("token", GITHUB),
    ("token", "glpat-Ab3dE5fG7hI9jK1lM3nO"),
    ("token", "xoxb-123456789012-abcdefABCDEF"),
    ("token", "hf_abcdefghijKLMNOPQRST0123456789abcd"),
    ("token", JWT),
)


def found_in(text: str) -> list[tuple[str, str]]:
    return [(match.category, text[match.start : match.end]) for match in Credentials().find(text)]


@pytest.mark.parametrize(("category", "secret"), SECRETS)
@pytest.mark.parametrize(
    "text", ["{}", "请用{}调用", "key: {}, thanks", 'x = "{}"', "token={}\n", "({})", "Authorization: Bearer {}"]
)
def test_known_forms(text: str, category: str, secret: str) -> None:
    """Keys and tokens of known forms are found wherever they stand, to the character."""
    assert found_in(text.format(secret)) == [(category, secret)]


@pytest.mark.parametrize(
    ("text", "category", "secret"),
    [
        ("Authorization: Bearer abcdef0123456789ABCDEF", "token", "abcdef0123456789ABCDEF"),
        ("authorization: Basic dXNlcjpwYXNz", "password", "dXNlcjpwYXNz"),
        ('api_key = "9f8a7b6c5d4e3f2a1b0c9d8e"', "api_key", "9f8a7b6c5d4e3f2a1b0c9d8e"),
        ("{'client_secret': 'q8Zt3Lk9Vw2Xy7Rb'}", "api_key", "q8Zt3Lk9Vw2Xy7Rb"),
        ("access_token=q8Zt3Lk9Vw2Xy7RbMn4P", "token", "q8Zt3Lk9Vw2Xy7RbMn4P"),
        (
            "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "api_key",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        ),
        ("密钥：q8Zt3Lk9Vw2Xy7RbMn4P。", "api_key", "q8Zt3Lk9Vw2Xy7RbMn4P"),
        ("password: hunter2", "password", "hunter2"),
        ('"password": "correct horse 1"', "password", "correct horse 1"),
        ("密码是Abc12345，请保存", "password", "Abc12345"),
        ("postgres://bob:s3cr3t@db:5432/x", "password", "s3cr3t"),
        ("redis://:p4ss@cache:6379", "password", "p4ss"),
        ("mongodb+srv://u:p%40ss@c0.example.net", "password", "p%40ss"),
    ],
)
def test_named_secrets(text: str, category: str, secret: str) -> None:
    """A secret without a form of its own is found by what it is called or where it stands."""
    assert found_in(text) == [(category, secret)]


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "YOUR_API_KEY_HERE_123"',
        "api_key = os.environ['OPENAI_API_KEY_2']",
        "api_key: ${OPENAI_API_KEY_0123456789}",
        "token = xxxxxxxxxxxxxxxxxxxxxxxx1",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx1",
        "token_count = 12345678901234567890",
        "the secret is in the garden",
        "password is required",
        "password: must be at least eight characters",
        "password = get_password(user1)",
        "密码是什么？",
        "sk-learn and task-abcdefghijklmnopqrstuvwx1",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "550e8400-e29b-41d4-a716-446655440000",
        "http://example.com:8080/a@b",
        "postgres://bob:${PASSWORD}@db/x",
        "-----BEGIN PRIVATE KEY----- is how it starts",
        f"-----BEGIN CERTIFICATE-----\n{LINES}\n-----END CERTIFICATE-----",
        f"-----BEGIN PUBLIC KEY-----\n{LINES}\n-----END PUBLIC KEY-----",
        f"data:image/png;base64,{BODY}",
    ],
)
def test_no_secrets(text: str) -> None:
    """Placeholders, names, sentences, hashes and public keys are none."""
    assert found_in(text) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\\n", " ", "\n  ", '\\n" +\n"'])
@pytest.mark.parametrize("kind", ["RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", ""])
def test_private_keys(kind: str, end: str) -> None:
    """A private key is one match from its first dash to its last, however its lines are joined."""
    key = KEY.replace("RSA ", kind).replace("\n", end)

    assert found_in(f"看：{key}。") == [("private_key", key)]


def test_part_of_a_private_key() -> None:
    """A key that is cut off is found as far as it goes, and so is one longer than the reach."""
    assert found_in(KEY[:900]) == [("private_key", KEY[:900])]
    assert Credentials(reach=500).find("x" + KEY)[0][:3] == (1, 501, "private_key")


@given(st.lists(st.sampled_from([s for _, s in SECRETS] + [KEY, "password: ", "://a:b@c", "-----BEGIN "]) | st.text()))
def test_spans_are_sound(parts: list[str]) -> None:
    """Whatever the text, matches are in order, apart, within it, and no longer than the reach."""
    text = "".join(parts)
    border = 0
    for match in Credentials(reach=300).find(text):
        assert border <= match.start < match.end <= len(text)
        assert match.end - match.start <= 300
        border = match.end


@given(
    st.lists(st.sampled_from([f" {s} " for _, s in SECRETS] + ["密码：Abc12345 ", " words "]), max_size=40), st.data()
)
def test_a_window_with_context_is_enough(parts: list[str], data: st.DataObject) -> None:
    """What touches a part of a text is found the same when only ``reach`` characters around that part are seen."""
    check = Credentials(reach=256)
    text = "".join(parts)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    offset = max(start - check.reach, 0)
    window = [
        match._replace(start=match.start + offset, end=match.end + offset)
        for match in check.find(text[offset : end + check.reach])
    ]

    def touching(matches: list[Match]) -> list[Match]:
        return [match for match in matches if match.start < end and match.end > start]

    assert touching(window) == touching(list(check.find(text)))


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "eyJ",
        "password=",
        "-----BEGIN PRIVATE KEY-----",
        "://a:",
        "sk-",
        "bearer ",
        "中",
        "\ud800",
        "A" * 99 + "\n",
    ],
)
def test_time_is_linear(unit: str) -> None:
    """A hostile text of 400 KB is searched in seconds at most."""
    text = ("-----BEGIN PRIVATE KEY-----" + unit * 400_000)[:400_000]
    started = time.process_time()

    Credentials().find(text)

    assert time.process_time() - started < 5

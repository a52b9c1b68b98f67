"""Which admin tokens are no secret: short ones, and those that anybody would try first."""

import re
from typing import Final

MIN_TOKEN: Final = 16
"""Characters of the shortest admin token on anything but loopback."""
_DISTINCT: Final = 6
_WORDS: Final = (
    "administrator|admin|root|user|password|passwd|pass|secret|token|bearer|change|me|replace|default|example|sample|"
    "test|demo|letmein|qwerty|abcdef|extproc|envoy|gateway|api|key|my|the|your|this|sk"
)
_WELL_KNOWN: Final = re.compile(rf"(?:{_WORDS}|[\d\W_])*", re.IGNORECASE)


def weakness(token: str) -> str:
    """Why a token must not guard what others can reach; empty where it may."""
    if _WELL_KNOWN.fullmatch(token) or len(set(token)) < _DISTINCT:
        return "is well known, or easily guessed; make one with: openssl rand -hex 24"
    if len(token) < MIN_TOKEN:
        return f"has less than {MIN_TOKEN} characters; make one with: openssl rand -hex 24"
    return ""

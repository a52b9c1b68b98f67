"""What all parts of the document have in common."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from extproc.config.units import Seconds

Positive = Annotated[Seconds, Field(gt=0)]


class Part(BaseModel):
    """Frozen; a key that it does not know is refused; every field is described by the text below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SecretRef(Part):
    """Where a secret is: exactly one of the three."""

    env: str | None = None
    """Name of an environment variable that holds it."""
    file: Path | None = None
    """File that holds it; relative to the configuration file. White space at its end is dropped."""
    value: str | None = Field(default=None, repr=False)
    """The secret itself: for tests and demonstrations."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.env, self.file, self.value)) != 1:
            raise ValueError("a secret is {env: NAME}, {file: PATH} or {value: TEXT}")
        return self

"""Stub model providers: they answer as the real ones do, well or badly, as told."""

from extproc.demo.stub.behaviour import Behaviour
from extproc.demo.stub.http1 import Received
from extproc.demo.stub.provider import StubProvider
from extproc.demo.stub.threads import running

__all__ = ["Behaviour", "Received", "StubProvider", "running"]

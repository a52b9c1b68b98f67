"""``python -m extproc.demo.stub --port 9001 --name primary``: one stub until SIGTERM; options as in Behaviour."""

import argparse
import asyncio
import resource
import signal
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import uvloop

from extproc.demo.stub.behaviour import Behaviour
from extproc.demo.stub.provider import StubProvider


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m extproc.demo.stub", description="Run one stub provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dialect", choices=("openai", "anthropic"), default="openai")
    parser.add_argument("--name", default="stub")
    parser.add_argument("--prefix")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="add to every answer")
    hints = get_type_hints(Behaviour)
    for each in fields(Behaviour):
        if each.name == "headers":
            continue
        option, kinds = f"--{each.name.replace('_', '-')}", get_args(hints[each.name]) or (hints[each.name],)
        kind = next(kind for kind in kinds if kind is not NoneType)
        if kind is bool:
            parser.add_argument(option, action="store_true")
        elif get_origin(kind) is Literal or isinstance(kind, str):
            choices = get_args(kind) or kinds
            parser.add_argument(option, choices=choices, default=each.default)
        else:
            parser.add_argument(option, type=kind, default=each.default)
    return parser


async def _serve(options: argparse.Namespace) -> None:
    told: dict[str, Any] = {
        each.name: getattr(options, each.name) for each in fields(Behaviour) if each.name in options
    }
    headers = {name.strip(): value.strip() for name, _, value in (each.partition(":") for each in options.header)}
    stub = StubProvider(
        options.name,
        options.dialect,
        host=options.host,
        port=options.port,
        prefix=options.prefix,
        behaviour=Behaviour(**told, headers=headers),
        record=False,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stub.start()
    print(f"{stub.name} listens on {stub.base_url}", flush=True)
    await stopped.wait()
    await stub.stop()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(_options().parse_args()))


if __name__ == "__main__":
    main()

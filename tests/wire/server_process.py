"""A server of scripted sessions as a process: ``server_process.py DRIVER ADDRESS`` says "ready" and stays."""

import asyncio
import sys

from rig import Journal, serving


async def main(driver: str, address: str) -> None:
    async with serving(driver, address, Journal().open_script):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))

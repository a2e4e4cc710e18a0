"""Runs a hundred tool calls at once from asyncio, and gives up on one that takes too long.

python many.py
"""

import asyncio

from troupe_sandbox import AsyncSandbox


async def main() -> None:
    """Prints what came of the calls."""
    async with AsyncSandbox() as sandbox:
        reports = await asyncio.gather(*(sandbox.run_tool(f"{number} ** 2") for number in range(100)))
        print(f"sum of squares: {sum(int(report.output) for report in reports)}")
        try:
            async with asyncio.timeout(0.5):
                await sandbox.run_tool("import time; time.sleep(10)")
        except TimeoutError:
            print("gave up: its process is gone")


if __name__ == "__main__":
    asyncio.run(main())

"""Many requests in flight from one asyncio program.

python examples/recommend_async.py 127.0.0.1:8001
"""

import asyncio
import sys

from recengine.client.aio import RecommenderClient


async def main(url: str) -> None:
    """Asks for a hundred users at once."""
    async with RecommenderClient(url, timeout=2.0) as client:
        requests = [client.recommend({"user_id": user}, k=3) for user in range(1, 101)]
        for user, answer in enumerate(await asyncio.gather(*requests), 1):
            print(user, [item for item, _ in answer[0]])


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"))

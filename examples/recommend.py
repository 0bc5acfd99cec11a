"""Ask a running server for recommendations.

recengine serve model_repository &
python examples/recommend.py 127.0.0.1:8001
"""

import sys

from recengine.client import RecommenderClient, User
from recengine.errors import Overloaded

USERS: list[User] = [
    {"user_id": 196, "history": [242, 393, 381, 251, 655]},
    {"history": [50, 172]},  # nobody we know, but we saw two items
    {},  # nothing known: the popular items
]

url = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
with RecommenderClient(url, timeout=0.5) as client:
    print("features:", ", ".join(feature.name for feature in client.schema.features))
    try:
        answers = client.recommend(USERS, k=5, exclude=[[242, 393], [], []])
    except Overloaded:
        sys.exit("the server has more to do than it can; ask again later")
    for user, answer in zip(USERS, answers, strict=True):
        print(user)
        for item, score in answer:
            print(f"  item {item}: {score:.3f}")

"""The same engine without a server: load a bundle and ask it.

python examples/in_process.py artifacts/bundle
"""

import sys

from recengine import Engine
from recengine.client import pack_users

engine = Engine(sys.argv[1])
users = pack_users(
    engine.schema,
    [{"user_id": 196, "history": [242, 393, 381]}, {}],
    exclude=[[242, 393, 381], []],
)
candidates, similarities = engine.retrieve(users, k=20)  # [users, 20]
item_ids, scores = engine.rank(users, candidates, similarities, k=5)  # [users, 5]
print(item_ids)
print(scores)

"""The reference models on a data set of your own, from its files to a running server.

python examples/train_and_compile.py data/ml-100k build/ml-100k

The data set is a folder of MovieLens or RecBole files; `read` takes Parquet and CSV, too, and names
of their columns.
"""

import sys
from pathlib import Path

from recengine.client import RecommenderClient
from recengine.compile import compile_bundle
from recengine.data import read
from recengine.export import export
from recengine.serving.server import TritonServer
from recengine.training.train import train

data, out = Path(sys.argv[1]), Path(sys.argv[2])
dataset = read(data)
for row in train(dataset, out / "checkpoint", max_epochs=3):
    print(row.method, row.metrics)
export(out / "checkpoint", out / "bundle")
repository = compile_bundle(out / "bundle", out / "model_repository")
with TritonServer(repository) as server, RecommenderClient(server.endpoints.grpc) as client:
    user = int(dataset.users.ids[0])
    for item, score in client.recommend({"user_id": user}, k=5)[0]:
        print(item, score)

"""From a data set to a running server, by the Python API.

python examples/train_and_compile.py data/ml-100k build/ml-100k
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
for row in train(read(data), out / "checkpoint", max_epochs=3):
    print(row.method, row.metrics)
export(out / "checkpoint", out / "bundle")
repository = compile_bundle(out / "bundle", out / "model_repository")
with TritonServer(repository) as server, RecommenderClient(server.endpoints.grpc) as client:
    for item, score in client.recommend({"user_id": 196}, k=5)[0]:
        print(item, score)

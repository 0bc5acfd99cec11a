"""The whole path on a live server: starts one, then runs the commands a user would type."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from recengine.serving.server import TritonServer

USERS = ("196", "22", "305")


def run(*words: str) -> None:
    """Prints and runs one recengine command."""
    print(f"\n$ recengine {' '.join(words)}", flush=True)
    subprocess.run([str(Path(sys.executable).parent / "recengine"), *words], check=True)


def main() -> None:
    """Recommendations for three users, then the quality and the latency tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    paths = parser.parse_args()
    with TritonServer(paths.repository, log=paths.bundle.parent / "server.log") as server:
        users = [word for user in USERS for word in ("--user", user)]
        run("recommend", "--url", server.endpoints.grpc, "--data", str(paths.data), *users)
        run("evaluate", str(paths.bundle), "--url", server.endpoints.grpc)
        run(
            "bench",
            "serving",
            "--url",
            server.endpoints.grpc,
            "--bundle",
            str(paths.bundle),
            "--quick",
        )


if __name__ == "__main__":
    main()

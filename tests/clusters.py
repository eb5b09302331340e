"""Clusters of Dask and of Ray that are there before a run, each in a process of its own."""

import os
import secrets
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# The first line printed is the address; the cluster ends with its standard input.
_SCRIPTS = {
    "dask": """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(
        n_workers=int(sys.argv[1]), threads_per_worker=1, memory_limit=0, dashboard_address=None,
        scheduler_kwargs={"allowed_failures": 1},
    )
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
""",
    "ray": """
import sys
import ray

context = ray.init("local", num_cpus=int(sys.argv[1]), include_dashboard=False,
    object_store_memory=100 * 2**20, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
""",
}


def new_token() -> dict[str, str]:
    """The environment by which a cluster of Ray and those who join it know each other."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def running_cluster(
    engine: str, folder: Path, *, workers: int, environment: Mapping[str, str] | None = None
) -> Generator[str]:
    """The address of a cluster on this machine, while the context lasts."""
    script = folder / f"{engine}_cluster.py"
    script.write_text(_SCRIPTS[engine])
    process = psutil.Popen(
        [sys.executable, str(script), str(workers)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | dict(environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        children = process.children(recursive=True)
        process.stdin.close()
        process.stdout.close()
        with suppress(psutil.TimeoutExpired):
            process.wait(30)
        for left in [*children, process]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()

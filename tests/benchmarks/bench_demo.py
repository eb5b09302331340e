"""How long the demo's stages take, and how much memory: `python tests/benchmarks/bench_demo.py`.

Runs the demo in a child process, in a fresh temporary folder. The last line of the output is one
JSON object: stage1_s and stage2_s, wall seconds of the stages over both pipelines and the controls
(Prefect's own start-up left out), and peak_rss_mib, the most resident memory that the demo and all
its child processes held at one time, in MiB. Memory that processes share counts for each of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.2
_RUN = """
import sys
from pathlib import Path
from pipeline.demo.run import run_demo
run_demo(Path(sys.argv[1]), quick=sys.argv[2] == "quick")
"""


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description="Time and memory of the demo.")
    parser.add_argument("--quick", action="store_true", help="the smaller demo")
    size = "quick" if parser.parse_args().quick else "full"
    with tempfile.TemporaryDirectory(prefix="bench-demo-") as folder:
        output = Path(folder) / "demo-output"
        command = [sys.executable, "-c", _RUN, str(output), size]
        # standard output goes to standard error: the last line of ours is the measurement
        demo = subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr)
        peak = 0
        while demo.poll() is None:
            peak = max(peak, resident_bytes(demo.pid))
            time.sleep(_POLL_SECONDS)
        if demo.returncode:
            raise SystemExit(f"the demo ended with exit code {demo.returncode}")
        seconds = json.loads((output / "results.json").read_text(encoding="utf-8"))["seconds"]
    measured = {
        "stage1_s": seconds["stage_1"],
        "stage2_s": seconds["stage_2"],
        "peak_rss_mib": round(peak / 2**20, 1),
    }
    print(json.dumps(measured), flush=True)


def resident_bytes(root: int) -> int:
    """Resident memory of a process and everything under it, from /proc (Linux)."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # the command's name, in parentheses, may hold anything: what follows it is numbers
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(folder.name)], pages[int(folder.name)] = int(fields[1]), int(fields[21])
    tree = {root}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(pages.get(pid, 0) for pid in tree) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

"""A stand-in for `kubectl`, `gcloud`, `sky` and SLURM's commands: it keeps a job's state in files, and runs nothing.

What the launchers say to these programs, and what they make of the answers, is tested with it; that SLURM, the JobSet
API and SkyPilot themselves take what is said has tests of its own.
"""

import json
import os
import re
import sys
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
STATE, CALLS = HOME / "state", HOME / "calls.jsonl"
# The program's word for a state of ours.
WORDS = {
    "squeue": {
        "queued": "PENDING|0|Priority",
        "running": "RUNNING|0|None",
        "preempted": "PENDING|1|BeginTime",
        "done": "COMPLETED|0|None",
        "failed": "FAILED|0|NonZeroExitCode",
        "cancelled": "CANCELLED|0|None",
    },
    "gcloud": {
        "queued": "WAITING_FOR_RESOURCES",
        "running": "ACTIVE",
        "done": "ACTIVE",
        "preempted": "SUSPENDED",
        "failed": "FAILED",
        "cancelled": "DELETING",
    },
    "sky": {
        "queued": "STARTING",
        "running": "RUNNING",
        "preempted": "RECOVERING",
        "done": "SUCCEEDED",
        "failed": "FAILED_SETUP",
        "cancelled": "CANCELLED",
    },
}


def jobset(state: str) -> dict:
    """The status of a JobSet."""
    ended = {"done": "Completed", "failed": "Failed"}.get(state)
    if ended:
        return {"conditions": [{"type": ended, "status": "True", "message": "as it says"}]}
    ready = int(state == "running")
    return {"restarts": int(state == "preempted"), "replicatedJobsStatus": [{"ready": ready, "succeeded": 0}]}


def answer(program: str, words: list[str], text: str) -> str:
    """What the program prints, for the state that the test has set."""
    state = STATE.read_text().strip() if STATE.exists() else ""
    said = " ".join(words)
    if refusal := os.environ.get("STAND_IN_REFUSES"):
        raise SystemExit(refusal)
    if program == "sbatch" or " create " in f" {said} " or (program == "sky" and words[1] == "launch"):
        STATE.write_text("queued")
        (HOME / "submitted").write_text(text or Path(words[-1]).read_text() if program != "gcloud" else said)
        return "77"
    if not state:
        raise SystemExit("error: there is no such job")
    if program == "scancel" or " delete " in f" {said} " or (program == "sky" and words[1] == "cancel"):
        STATE.write_text("cancelled" if program != "kubectl" else "")
        return ""
    if program == "squeue":
        return f"77|{WORDS['squeue'][state]}|"
    if "logs" in words or re.search(r"cat .*\.log", said):
        return "first line\nsecond line"
    if re.search(r"cat .*\.exit", said):
        return "0" if state == "done" else ""
    if program == "kubectl":
        return json.dumps({"status": jobset(state)})
    if program == "sky":
        old = {"job_id": 1, "job_name": "first", "status": "FAILED"}
        return json.dumps([{"job_id": 2, "job_name": "first", "status": WORDS["sky"][state]}, old])
    return WORDS["gcloud"][state]


if __name__ == "__main__":
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    given = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    with CALLS.open("a") as calls:
        calls.write(json.dumps([name, *arguments]) + "\n")
    print(answer(name, arguments, given))

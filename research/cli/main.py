"""`isoflop VERB ...`: parses the command, runs the verb, turns a user's mistake into one sentence."""

import argparse
import importlib
import json
import keyword
import logging
import os
import signal
import sys
from collections.abc import Sequence

from research import __version__
from research.errors import UserError

VERBS = {
    "prepare": "turn text into a tokenizer and token shards, once",
    "train": "pretrain a model, or go on with a run",
    "evaluate": "measure a trained model on its held-out documents",
    "compare": "rank runs of several objectives by a yardstick that they share",
    "generate": "continue a text, or fill its masks, with a trained model",
    "profile": "record what the updates of a run spend their time on",
    "sweep": "run many cells that answer one question, here or on a cluster",
    "plan": "say whether a run fits devices that are not here, and how long it takes",
    "launch": "start a run on SLURM, Kubernetes, TPU VMs or SkyPilot, ask after it, end it",
    "doctor": "examine the laws that every run rests on, on these settings and devices",
    "coordinates": "measure whether a learning rate holds at other widths",
    "fit": "fit scaling laws to runs, with intervals, and say what a budget calls for",
    "import": "make a run directory of a model of Hugging Face or of a GGUF file",
    "export": "write a model for transformers or llama.cpp",
}


def parser(verb: str | None) -> argparse.ArgumentParser:
    """The command; only the arguments of `verb` are filled in, since each verb imports what it works with."""
    top = argparse.ArgumentParser(
        prog="isoflop",
        description="Controlled pretraining experiments: change the objective, the size or the data, and nothing else.",
        epilog="isoflop VERB --help shows examples and options of a verb.",
    )
    top.add_argument("--version", action="version", version=f"isoflop {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        if name != verb:
            verbs.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"research.cli.{name}{'_' if keyword.iskeyword(name) else ''}")
        chosen = verbs.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=module.epilog(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        chosen.add_argument("--json", action="store_true", help="print one machine-readable object as the last line")
        module.add_arguments(chosen)
        chosen.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a user's mistake, 128 + n after signal n."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    # JAX's C++ parts say much that no user can act on; set before they are loaded.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = sys.argv[1:] if argv is None else argv
    verb = next((word for word in argv if not word.startswith("-")), None)
    options, rest = parser(verb).parse_known_args(argv)

    from research.cli import arguments

    try:
        options.overrides = arguments.overrides(rest)
        status, result = options.run(options)
    except UserError as error:
        print(f"isoflop {options.verb}: {error}", file=sys.stderr)
        status, result = 2, {"error": str(error)}
    except KeyboardInterrupt:
        print(f"isoflop {options.verb}: interrupted", file=sys.stderr)
        status, result = 128 + signal.SIGINT, {"signal": signal.SIGINT}
    if options.json:
        print(json.dumps(result), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

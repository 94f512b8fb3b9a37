"""A gateway with the benchmark's 20,000 users, to load by hand: Redis, the rows and Headrace until Ctrl-C.

python -m loadtest.serve [--port 8500] [--transport fast|grpcio] [--no-cache]
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from loadtest import answers, stack
from loadtest.processes import DidNotStart, exit_on_signals, running_redis


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--transport", choices=["fast", "grpcio"], default=stack.DEFAULT_TRANSPORT)
    parser.add_argument("--no-cache", action="store_true", help="every row comes from Redis")
    options = parser.parse_args()
    exit_on_signals()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="headrace-serve-") as folder,
            running_redis(folder=Path(folder)) as redis,
        ):
            print("loading the rows of 20,000 users", flush=True)
            stack.load_rows(redis.port)
            with stack.running_headrace(
                "headrace",
                transport=options.transport,
                cache=not options.no_cache,
                redis_port=redis.port,
                folder=Path(folder),
                port=options.port,
            ) as headrace:
                answers.check_headrace(headrace.port)
                print(f"headrace listens on 127.0.0.1:{headrace.port}; Ctrl-C ends it", flush=True)
                signal.pause()
    except (DidNotStart, answers.WrongAnswer) as problem:
        print(f"serve: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

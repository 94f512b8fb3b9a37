"""Makes `ghz/*.json`, the configurations of ghz for the flights example, from real flights of October to December.

    python -m loadtest.make_ghz

ghz sends the messages under `data` in turn. The proto is not named: ghz asks the server's reflection.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from loadtest import traffic

FOLDER = Path(__file__).with_name("ghz")
SEED = 1
SINGLES = 100
RANKINGS = 3


def configuration(requests: Sequence[traffic.Request], **options: Any) -> str:
    """The file's text, one message to a line."""
    settings = {
        "host": "127.0.0.1:8500",
        "insecure": True,
        "call": "headrace.v1.PredictionService.Predict",
        "timeout": "1s",
    } | options
    messages = [json_format.MessageToDict(request, preserving_proto_field_name=True) for request in requests]
    head = json.dumps(settings, indent=2).removesuffix("\n}")
    return head + ',\n  "data": [\n    ' + ",\n    ".join(map(json.dumps, messages)) + "\n  ]\n}\n"


def main() -> None:
    """Writes the files."""
    flights = traffic.FlightTraffic(random.Random(SEED))
    singles = [flights.single() for _ in range(SINGLES)]
    rankings = [flights.ranking() for _ in range(RANKINGS)]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "flights-single.json").write_text(
        configuration(singles, name="one flight", total=20_000, concurrency=50, connections=5)
    )
    (FOLDER / "flights-batch.json").write_text(
        configuration(rankings, name="200 flights", total=2_000, concurrency=16, connections=4)
    )


if __name__ == "__main__":
    main()

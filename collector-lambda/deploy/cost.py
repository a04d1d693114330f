#!/usr/bin/env python3
"""What a million events cost on AWS. Prints the tables of COST.md; `--write` writes them into it.

A model, not a bill: it multiplies listed prices with what one batch uses. Without free tiers, discounts and taxes.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

# Dollars, us-east-1, on demand, first tier, as AWS lists them. Check them before you rely on the result.
PRICES = {
    "http_api_request": 1.00 / 1e6,  # for each started 512 KB
    "rest_api_request": 3.50 / 1e6,
    "lambda_request": 0.20 / 1e6,
    "lambda_gb_second": 0.0000133334,  # arm64
    "firehose_gb": 0.029,  # of records, each rounded up to 5 KB
    "write_unit": 0.625 / 1e6,
    "read_unit": 0.125 / 1e6,
    "s3_put": 0.005 / 1e3,
    "s3_gb_month": 0.023,
    "log_gb": 0.50,
}
KB, GB = 1024, 1024**3
LOG_BYTES_PER_REQUEST = 900


@dataclass(frozen=True)
class Use:
    """How a site is used."""

    events: int = 20  # in a batch
    bytes: int = 400  # of a stored event
    types: int = 2  # of events in a batch
    keys: int = 5  # counter keys in a batch
    memory: float = 0.5  # GB of the collector
    seconds: float = 0.015  # of the collector for a batch
    authorized: float = 0.2  # share of requests that API Gateway asks the authorizer about
    compression: float = 0.2  # size of an object by the size of its lines


def billed_records(lines, size):
    """Bytes that Firehose bills for so many lines of this size in one batch, as the collector packs them."""
    records, held = [], 0
    for _ in range(lines):
        billed = math.ceil(held / (5 * KB)) * 5 * KB
        if held and ((held + size > billed and held >= 0.95 * billed) or held + size > 60 * KB):
            records.append(held)
            held = 0
        held += size
    return sum(math.ceil(record / (5 * KB)) * 5 * KB for record in [*records, held])


def per_million(use):
    """Dollars for a million events in batches, by what they are for."""
    p, batches = PRICES, 1e6 / use.events
    body = use.events * use.bytes
    transform_calls = 1e6 * use.bytes / (1024 * KB)
    return {
        "API": batches * math.ceil(body / (512 * KB)) * p["http_api_request"],
        "authorizer": batches * use.authorized * (p["lambda_request"] + 0.25 * 0.003 * p["lambda_gb_second"]),
        "collector": batches * (p["lambda_request"] + use.memory * use.seconds * p["lambda_gb_second"]),
        # One transaction: the marker, and two items for each type and key. A transaction's write costs two units.
        "counters": batches * ((1 + 2 * (use.types + use.keys)) * 2 * p["write_unit"] + p["read_unit"]),
        "Firehose": batches * billed_records(use.events, use.bytes) / GB * p["firehose_gb"],
        "transform": transform_calls * (p["lambda_request"] + 0.5 * 0.2 * p["lambda_gb_second"]),
        "S3, one month": 1e6 * use.bytes * use.compression / GB * p["s3_gb_month"],
        "logs": batches * LOG_BYTES_PER_REQUEST / GB * p["log_gb"],
    }


def per_million_one_by_one(use):
    """The same for one event a call of a REST API, one record and plain counters for each, without a transaction."""
    p = PRICES
    return {
        "API": 1e6 * p["rest_api_request"],
        "authorizer": 1e6 * use.authorized * (p["lambda_request"] + 0.25 * 0.003 * p["lambda_gb_second"]),
        "collector": 1e6 * (p["lambda_request"] + use.memory * use.seconds * p["lambda_gb_second"]),
        # Total and hour, of the type and of the key.
        "counters": 1e6 * 4 * p["write_unit"],
        "Firehose": 1e6 * math.ceil(use.bytes / (5 * KB)) * 5 * KB / GB * p["firehose_gb"],
        "transform": 1e6 * use.bytes / (1024 * KB) * (p["lambda_request"] + 0.5 * 0.2 * p["lambda_gb_second"]),
        "S3, one month": 1e6 * use.bytes * use.compression / GB * p["s3_gb_month"],
        "logs": 1e6 * LOG_BYTES_PER_REQUEST / GB * p["log_gb"],
    }


def objects_per_month(buffering_seconds):
    """Dollars for writing the lake's objects, which depends on time and not on events."""
    return 30 * 86400 / buffering_seconds * PRICES["s3_put"]


CASES = [
    ("1 event a batch", per_million, Use(events=1, types=1, keys=1)),
    ("5 events", per_million, Use(events=5, types=2, keys=3)),
    ("20 events", per_million, Use()),
    ("100 events", per_million, Use(events=100, types=3, keys=12)),
    ("500 events of 1 KB", per_million, Use(events=500, bytes=1024, types=3, keys=30, seconds=0.05)),
    ("one event a REST call", per_million_one_by_one, Use(events=1, types=1, keys=1)),
]


def table():
    rows = [(name, price(use)) for name, price, use in CASES]
    columns = list(rows[0][1])
    lines = ["| | " + " | ".join(columns) + " | **sum** |", "|---|" + "---|" * (len(columns) + 1)]
    for name, costs in rows:
        cells = " | ".join(f"{costs[column]:.2f}" for column in columns)
        lines.append(f"| {name} | {cells} | **{sum(costs.values()):.2f}** |")
    lines += ["", "| `BufferingSeconds` | dollars a month for writing objects |", "|---|---|"]
    lines += [f"| {seconds} | {objects_per_month(seconds):.2f} |" for seconds in (60, 300, 900)]
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(__file__).with_name("COST.md")
    if "--write" in sys.argv:
        head, _ = page.read_text().split("<!-- table -->")
        page.write_text(f"{head}<!-- table -->\n{table()}\n")
    else:
        print(table())

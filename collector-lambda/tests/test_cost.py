"""The cost page: the model is right where it can be worked out by hand, and the page says what the model does."""

import math
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
sys.path.insert(0, str(DEPLOY))

import cost  # noqa: E402


def test_the_page_has_the_current_table():
    assert cost.table() in (DEPLOY / "COST.md").read_text(), "run collector-lambda/deploy/cost.py --write"


def test_a_batch_of_twenty_by_hand():
    costs = cost.per_million(cost.Use())
    # 50,000 batches: 15 items at two write units each, and one read unit.
    assert costs["counters"] == pytest.approx(50_000 * (30 * 0.625e-6 + 0.125e-6))
    assert costs["API"] == pytest.approx(0.05)
    # 8,000 bytes are billed as two times 5 KB.
    assert costs["Firehose"] == pytest.approx(50_000 * 10 * 1024 / 1024**3 * 0.029)


@pytest.mark.parametrize("lines, size, billed", [(1, 100, 5), (1, 5 * 1024, 5), (1, 5 * 1024 + 1, 10), (12, 420, 5), (13, 420, 10), (500, 1024, 500)])
def test_firehose_bills_multiples_of_five_kilobytes(lines, size, billed):
    assert cost.billed_records(lines, size) == billed * 1024
    assert cost.billed_records(lines, size) >= lines * size


def test_larger_batches_are_never_dearer_and_batches_beat_single_calls():
    sums = [sum(price(use).values()) for _, price, use in cost.CASES]
    assert sums[:4] == sorted(sums[:4], reverse=True)
    assert sum(cost.per_million(cost.Use()).values()) < sum(cost.per_million_one_by_one(cost.Use()).values()) / 2
    assert all(math.isfinite(value) and value >= 0 for _, price, use in cost.CASES for value in price(use).values())

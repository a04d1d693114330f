"""What makes a request good beyond what a schema can say; the document says it in words."""

import time
import uuid

import schemathesis

HOUR = 3_600_000


@schemathesis.hook
def before_call(context, case, kwargs):
    if not case.meta.generation.mode.is_positive:
        return
    # A schema counts characters, and the limits are bytes.
    if isinstance(case.body, dict):
        for name, text in case.body.items():
            if isinstance(text, str) and not text.isascii():
                case.body[name] = text.encode(errors="ignore")[: len(text)].decode(errors="ignore") or "x"
    # The time of an event: not longer ago than the write key may say, and not in what looks like seconds.
    if isinstance(case.body, dict) and case.body.get("occurred_at") is not None:
        case.body["occurred_at"] = int(time.time() * 1000)
    # What has the id of an earlier request is that request, sent again.
    if isinstance(case.body, dict) and "batch_id" in case.body:
        case.body["batch_id"] = str(uuid.uuid4())
    if "idempotency-key" in (case.headers or {}):
        case.headers["idempotency-key"] = str(uuid.uuid4())
    # `from` is before `to`, and a series is not too long.
    if case.path == "/v1/counts" and {"from", "to"} & set(case.query):
        # Dates are tried in `tests/router.rs`.
        to = str(case.query.get("to", ""))
        end = max(int(to) if to.isdecimal() else int(time.time() * 1000), HOUR)
        if "to" in case.query:
            case.query["to"] = end
        if "from" in case.query:
            case.query["from"] = max(end - 1000 * HOUR, 0)

"""The stack as it is deployed: the template and the real functions in local AWS, with the permissions of roles enforced.

Events go the whole way, from clients through the API, the authorizer, the collector, Firehose and the transform to S3, and
are counted exactly.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collector-lambda/deploy"))

import local  # noqa: E402

COLLECTOR = Path(os.environ["TALLYMARK_COLLECTOR"]).resolve()
BINARIES = COLLECTOR.parent
ORIGIN = "https://shop.example"


class Stage:
    """A deployed stage with the site `shop`."""

    def __init__(self, name, packages, stack):
        self.name, self.packages, self.stack = name, packages, stack
        self.outputs = local.deploy(name, packages)
        self.url = self.outputs["TrackUrl"]
        self.keys = self.site("add", "shop", "--origin", ORIGIN)

    def site(self, *arguments):
        printed = run_stack("site", "--stage", self.name, "--collector", str(COLLECTOR), *arguments)
        return dict(line.split(": ", 1) for line in printed.splitlines() if ": " in line)

    def ask(self, method, path, key=None, username="shop", **options):
        # Servers send no origin with the secret key.
        headers = {} if (key or "").startswith("tms_") else {"Origin": ORIGIN}
        headers |= options.pop("headers", {})
        if key is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{username}:{key}".encode()).decode()
        return requests.request(method, self.url + path, headers=headers, timeout=60, **options)

    def batch(self, events, batch_id=None, key="secret_key"):
        """Sends a batch until it is taken, as every client does: the emulator runs the transform before Firehose answers."""
        body = {"batch_id": batch_id or str(uuid.uuid4()), "sdk": "test/1", "events": events}
        by = time.monotonic() + 60
        while (answer := self.ask("POST", "/v1/batch", self.keys[key], json=body)).status_code >= 500:
            assert time.monotonic() < by, answer.text
            time.sleep(0.5)
        return answer

    def count(self, event_type, counter_key=None):
        query = {"event_type": event_type, **({"key": counter_key} if counter_key else {})}
        answer = self.ask("GET", "/v1/counts", self.keys["secret_key"], params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["total"]

    def lake(self):
        """Every line in the lake, read as a stranger to this project would."""
        bucket = boto3.resource("s3").Bucket(self.outputs["LakeBucket"])
        text = "".join(item.get()["Body"].read().decode() for item in bucket.objects.filter(Prefix=self.outputs["LakePrefix"]))
        assert not text or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    def reconcile(self):
        """The exit code and what it says."""
        lake = f"s3://{self.outputs['LakeBucket']}/{self.outputs['LakePrefix']}"
        done = subprocess.run([COLLECTOR, "reconcile", "--lake", lake, "--counters", f"dynamodb:{self.outputs['CountersTable']}",
                               "--firehose-delay", "0s"], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


def run_stack(*arguments, fails=False):
    done = subprocess.run([sys.executable, ROOT / "collector-lambda/deploy/stack", *arguments], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return local.packages(BINARIES, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def stages(packages, tmp_path_factory):
    with local.emulator(tmp_path_factory.mktemp("local-aws")):
        stack = local.stack_module()
        yield Stage("one", packages, stack), Stage("two", packages, stack)


def view(n, **more):
    return {"event_id": str(uuid.uuid4()), "event_type": "page_view", "occurred_at": int(time.time() * 1000) - n,
            "session_id": "s", "url": f"{ORIGIN}/{n % 3}", "title": "Tee ☕", **more}


def test_events_go_the_whole_way_and_are_counted_exactly(stages):
    one, two = stages
    sent = [view(n, properties={"price": 1.10, "n": n}) for n in range(250)]
    receipt = one.batch(sent)
    assert receipt.status_code == 200, receipt.text
    assert (receipt.json()["accepted"], receipt.json()["duplicate"]) == (250, False)
    # A repeated batch is neither stored nor counted again.
    batch_id, extra = str(uuid.uuid4()), [view(7)]
    assert [one.batch(extra, batch_id, "write_key").json()["duplicate"] for _ in range(3)] == [False, True, True]
    assert one.batch([{"event_type": "button_click", "button_id": "buy", "session_id": "s"}], key="write_key").status_code == 200

    # What a client had to send again may be stored twice, under the same id; it is counted once.
    lines = one.lake()
    by_id = {line["event_id"]: line for line in lines}
    assert len(by_id) == 252
    for event in sent + extra:
        line = by_id[event["event_id"]]
        assert {name: line[name] for name in event} == event
        assert line["username"] == "shop" and line["received_at"] >= event["occurred_at"]
    assert {line["scope"] for line in lines} == {"secret", "write"}
    assert (one.count("page_view"), one.count("button_click", "buy")) == (251, 1)
    assert one.count("page_view", f"{ORIGIN}/1") == sum(event["url"].endswith("/1") for event in sent + extra)
    assert one.reconcile()[0] == 0, one.reconcile()[1]

    # The other stage, in the same account, has seen nothing of it, and its keys are others.
    assert (two.count("page_view"), two.lake()) == (0, [])
    assert two.ask("GET", "/v1/counts?event_type=custom", one.keys["secret_key"]).status_code == 403
    # Each names what is its own.
    assert not set(one.outputs.values()) & set(two.outputs.values()) - {"events/"}


def test_the_rust_client_delivers_through_the_api(stages):
    stage = stages[1]
    service = subprocess.Popen(
        [BINARIES / "axum-service"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TALLYMARK_ENDPOINT": stage.url, "TALLYMARK_USERNAME": "shop", "TALLYMARK_KEY": stage.keys["secret_key"],
             "LISTEN": "127.0.0.1:0"})
    address = service.stdout.readline().removeprefix("listening on ").strip()
    for _ in range(40):
        assert requests.post(f"{address}/press/tea", timeout=60).ok
    service.send_signal(signal.SIGTERM)
    said, _ = service.communicate(timeout=60)
    assert service.returncode == 0, said
    made = int(said.split("delivered ")[1].split(" of ")[0])
    assert made >= 40 and f"delivered {made} of {made}" in said
    assert stage.count("button_click", "tea") == 40
    assert len({line["event_id"] for line in stage.lake()}) == made
    assert stage.reconcile()[0] == 0


def test_who_may_do_what(stages):
    stage = stages[0]
    secret, write = stage.keys["secret_key"], stage.keys["write_key"]
    click = {"button_id": "matrix", "session_id": "s"}

    def post(key, **options):
        return stage.ask("POST", "/button/click", key, json=click, **options).status_code

    def raw(header):
        return stage.ask("POST", "/button/click", json=click, headers={"Authorization": header}).status_code

    assert post(None) == 401
    assert (post("tms_wrong"), post(secret, username="nobody"), post("")) == (403, 403, 403)
    good = base64.b64encode(f"shop:{secret}".encode()).decode()
    malformed = ["Basic", "Basic !!!", f"Bearer {good}", f"Basic {good},Basic {good}", "Basic " + base64.b64encode(b"shop").decode(), "x" * 2000]
    assert [raw(header) for header in malformed] == [403] * len(malformed)
    assert (post(secret), post(write)) == (200, 200)
    # The write key: from its origins only, and never for reading. The gateway's cached answer does not change that.
    assert post(write, headers={"Origin": "https://other.example"}) == 403
    assert stage.ask("GET", "/v1/counts?event_type=custom", write).status_code == 403
    assert stage.ask("GET", "/button/click/count?button_id=matrix", secret).json() == {"count": 2}


def test_a_context_that_a_client_makes_up_changes_nothing(stages):
    stage = stages[0]
    context = {"username": "shop", "scope": "secret"}
    forged = {"requestContext": {"authorizer": {"lambda": context}}, "authorizer": {"lambda": context}}
    headers = {"X-Amzn-Request-Context": json.dumps(forged), "requestContext": json.dumps(forged), "X-Authorizer-Lambda": json.dumps(context),
               "username": "shop", "scope": "secret"}
    for path in ("/v1/counts?event_type=page_view", "/v1/counts?event_type=page_view&requestContext.authorizer.lambda.scope=secret"):
        assert stage.ask("GET", path, headers=headers).status_code == 401
        assert stage.ask("GET", path, stage.keys["write_key"], headers=headers).status_code == 403
    # Where the gateway asks no authorizer, the collector checks the key itself: HEAD has no route of its own.
    assert stage.ask("HEAD", "/v1/counts?event_type=page_view", headers=headers).status_code == 401
    assert stage.ask("HEAD", "/v1/counts?event_type=page_view", stage.keys["secret_key"]).status_code == 200
    assert stage.ask("POST", "/button/click", headers=headers, json={**forged, "button_id": "forged", "session_id": "s"}).status_code == 401


def test_a_preflight_needs_no_key_and_answers_may_be_read_by_pages(stages):
    stage = stages[0]
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for path in ("/v1/batch", "/track", "/v1/counts"):
        answer = stage.ask("OPTIONS", path, headers=asked)
        assert answer.status_code in (200, 204)
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
    answer = stage.ask("POST", "/track", stage.keys["write_key"], json={"name": "cors"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")


def test_what_needs_no_key_is_answered_by_the_collector(stages):
    stage = stages[0]
    assert stage.ask("GET", "/health").json() == {"status": "ok"}
    assert stage.ask("GET", "/ready").json() == {"status": "ready"}
    assert stage.ask("GET", "/v1/limits").json()["batch_events"] == 500
    assert "<html" in requests.get(stage.outputs["DocsUrl"], timeout=60).text
    assert stage.ask("GET", "/wp-login.php").json()["code"] == "not_found"


def test_a_poisoned_record_harms_nothing_else(stages):
    stage = stages[0]
    good = view(1)
    before = len(stage.lake())
    firehose = boto3.client("firehose")
    poison = [b"not json\n", b'{"event_id": 7}\n', b"\xff\xfe\n"]
    firehose.put_record_batch(DeliveryStreamName=stage.outputs["DeliveryStream"], Records=[{"Data": data} for data in poison])
    assert stage.batch([good]).status_code == 200
    lines = stage.lake()
    assert good["event_id"] in {line["event_id"] for line in lines}
    assert len(lines) == before + 1
    # The emulator forgets what AWS keeps under errors/; what the transform answers is what AWS goes by.
    event = {"records": [{"recordId": str(n), "data": base64.b64encode(data).decode()} for n, data in enumerate(poison)]}
    answer = json.loads(run_stack("invoke", "--stage", "one", "--function", "transform", "--payload", json.dumps(event)))
    assert answer == {"records": [{"recordId": str(n), "result": "ProcessingFailed"} for n in range(3)]}
    assert stage.reconcile()[0] == 0


def test_what_firehose_could_not_transform_is_named_in_the_queue_and_can_be_replayed(stages):
    stage = stages[0]
    event = {**view(2), "username": "shop", "scope": "secret", "batch_id": str(uuid.uuid4()), "received_at": int(time.time() * 1000)}
    packed = json.dumps(event).encode() + b"\n\nnot json\n"
    entry = {"attemptsMade": 4, "errorCode": "Lambda.FunctionError", "rawData": base64.b64encode(packed).decode(), "lambdaARN": "arn:…"}
    key = "errors/processing-failed/day=2026-11-27/object"
    boto3.client("s3").put_object(Bucket=stage.outputs["LakeBucket"], Key=key, Body=json.dumps(entry).encode() + b"\n")
    sqs = boto3.client("sqs")
    messages = sqs.receive_message(QueueUrl=stage.outputs["FailedRecordsQueue"], WaitTimeSeconds=5).get("Messages", [])
    # Nothing else: a message that is there from the start would be an alarm.
    assert [json.loads(m["Body"])["Records"][0]["s3"]["object"]["key"] for m in messages] == [key.replace("=", "%3D")]
    assert "2 lines" in run_stack("replay", "--stage", "one")
    assert event["event_id"] in {line["event_id"] for line in stage.lake()}
    assert "0 lines" in run_stack("replay", "--stage", "one")
    # It is in the lake and was never counted; that is what reconcile is for.
    assert "differ" in stage.reconcile()[1]


def test_a_second_editor_of_the_sites_is_refused(stages):
    stage = stages[1]
    secrets, secret = boto3.client("secretsmanager"), stage.outputs["SitesSecret"]
    text, version = stage.stack.current_sites(secrets, secret)
    stage.site("add", "first", "--origin", "https://first.example")
    with pytest.raises(Exception, match="somebody else has changed the list of sites meanwhile"):
        stage.stack.store_sites(secrets, secret, text, version)
    assert {site["username"] for site in json.loads(stage.stack.current_sites(secrets, secret)[0])["sites"]} == {"shop", "first"}
    assert "was not changed" in run_stack("site", "--stage", "two", "--collector", str(COLLECTOR), "add", "first", "--origin", ORIGIN, fails=True)


def test_a_new_site_works_soon_and_a_revoked_key_ends_within_a_minute(stages):
    stage = stages[1]
    keys = stage.site("add", "late", "--origin", ORIGIN)

    def answer():
        return stage.ask("POST", "/track", keys["secret_key"], username="late", json={"name": "late"}).status_code

    # An unknown key makes the authorizer read the list again, unless it just has; then the gateway keeps its answer.
    by = time.monotonic() + 45
    while answer() != 200:
        assert time.monotonic() < by
        time.sleep(1)
    stage.site("remove", "late")
    assert answer() in (200, 401), "the gateway has kept the answer"
    by = time.monotonic() + 60
    while answer() != 403:
        assert time.monotonic() < by
        time.sleep(1)


def test_an_update_under_traffic_loses_nothing_and_keeps_the_sites(stages):
    stage = stages[1]
    before, stop = stage.count("page_view", "https://shop.example/update"), []

    def send():
        accepted = 0
        while not stop:
            events = [{**view(0), "url": "https://shop.example/update"} for _ in range(3)]
            batch_id = str(uuid.uuid4())
            assert stage.batch(events, batch_id).status_code == 200
            accepted += len(events)
        return accepted

    with ThreadPoolExecutor(2) as threads:
        senders = [threads.submit(send) for _ in range(2)]
        stage.stack.deploy("two", ["CollectorMemory=1024", "LogRetentionDays=7"], "x86_64", stage.packages)
        local.mend({**stage.outputs, "TrackUrl": stage.stack.outputs("two")["TrackUrl"]})
        stop.append(True)
        accepted = sum(sender.result() for sender in senders)
    assert accepted > 0
    assert stage.count("page_view", "https://shop.example/update") == before + accepted
    lines = [line for line in stage.lake() if line.get("url") == "https://shop.example/update"]
    assert len({line["event_id"] for line in lines}) == accepted
    configuration = boto3.client("lambda").get_function_configuration(FunctionName=stage.outputs["CollectorFunction"])
    assert configuration["MemorySize"] == 1024


def test_mistakes_in_commands_are_named(stages):
    assert "there is no stack tallymark-none here; `make deploy STAGE=none` makes it" in run_stack("outputs", "--stage", "none", fails=True)
    assert "'No!' is not a stage" in run_stack("outputs", "--stage", "No!", fails=True)
    assert "not one of collector, authorizer, transform" in run_stack("logs", "--stage", "one", "--function", "x", fails=True)
    assert "PAYLOAD is not JSON" in run_stack("invoke", "--stage", "one", "--function", "transform", "--payload", "{", fails=True)
    assert "nothing was deleted" in run_stack("destroy", "--stage", "one", "--delete-data", "two", fails=True)


def test_destroying_a_stage_keeps_its_data_unless_that_is_named(stages):
    one, two = stages
    assert f"kept: s3://{one.outputs['LakeBucket']}" in run_stack("destroy", "--stage", "one")
    assert len(one.lake()) > 250
    run_stack("destroy", "--stage", "two", "--delete-data", "two")
    buckets = {bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]}
    assert one.outputs["LakeBucket"] in buckets and two.outputs["LakeBucket"] not in buckets

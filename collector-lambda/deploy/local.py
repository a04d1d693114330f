"""Local AWS: starts the emulator, deploys a stage into it, and mends what the emulator gets wrong.

The emulator is laxer than AWS in many ways and stricter in two; README.md lists what only an account can show.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import boto3
from cfnlint.decode import cfn_yaml

HERE = Path(__file__).resolve().parent
REGION = "eu-central-1"


def stack_module():
    """The commands of `stack`, which is a program and has no suffix."""
    loader = importlib.machinery.SourceFileLoader("stack", str(HERE / "stack"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("stack", loader))
    loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def emulator(folder, port=None):
    """Runs local AWS, with the permissions of roles enforced, and sets the variables by which clients find it."""
    port = port or free_port()
    endpoint = f"http://127.0.0.1:{port}"
    ours = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # Neither an account's session nor its profile may be mixed in.
    others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    program = Path(sys.executable).with_name("ministack")
    log = Path(folder) / "local-aws.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, program],
            env={**others, **ours, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "AUTH": "true", "TMPDIR": str(folder),
                 "LOG_LEVEL": "WARNING"},
            stdout=output, stderr=output)
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        wait_for(f"{endpoint}/_ministack/health", process, log)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_for(url, process, log):
    for _ in range(600):
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"local AWS does not start:\n{log.read_text()[-2000:]}")


def deploy(stage, packages, parameters=()):
    """Deploys a stage as `make deploy` does, mends it, and returns its outputs with a track URL that resolves anywhere."""
    stack = stack_module()
    values = stack.deploy(stage, list(parameters), "x86_64", packages)
    mend(values)
    values["TrackUrl"] = f"{os.environ['AWS_ENDPOINT_URL']}/_aws/execute-api/{api_id(values)}/$default"
    values["DocsUrl"] = f"{values['TrackUrl']}/docs"
    return values


def mend(values):
    """Numbers that come from parameters stay text in the emulator, and a CORS configuration keeps CloudFormation's case."""
    firehose = boto3.client("firehose")
    name = values["DeliveryStream"]
    stream = firehose.describe_delivery_stream(DeliveryStreamName=name)["DeliveryStreamDescription"]
    [destination] = stream["Destinations"]
    hints = destination["ExtendedS3DestinationDescription"]["BufferingHints"]
    firehose.update_destination(
        DeliveryStreamName=name, CurrentDeliveryStreamVersionId=stream["VersionId"], DestinationId=destination["DestinationId"],
        ExtendedS3DestinationUpdate={"BufferingHints": {hint: int(value) for hint, value in hints.items()}})
    cors = template()["Resources"]["Api"]["Properties"]["CorsConfiguration"]
    boto3.client("apigatewayv2").update_api(ApiId=api_id(values), CorsConfiguration={**cors, "AllowOrigins": ["*"]})


def api_id(values):
    return values["TrackUrl"].split("//")[1].split(".")[0]


def template():
    """The template, with the functions of CloudFormation in their long form."""
    return cfn_yaml.load(str(HERE / "template.yaml"))

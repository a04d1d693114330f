"""Local AWS: starts the emulator, deploys a stage into it, and mends what the emulator gets wrong.

The emulator is laxer than AWS in many ways and stricter in two; README.md lists what only an account can show.
"""

import contextlib
import functools
import http.server
import importlib.machinery
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

import boto3
from cfnlint.decode import cfn_yaml

HERE = Path(__file__).resolve().parent
REGION = "eu-central-1"
PROGRAMS = {"collector": "tallymark-lambda", "authorizer": "tallymark-authorizer", "transform": "tallymark-transform"}


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


def packages(binaries, folder):
    """Each function as a package, from the unoptimised programs of this build."""
    folder = Path(folder)
    (folder / "x86_64").mkdir(parents=True, exist_ok=True)
    for function, program in PROGRAMS.items():
        stripped = folder / program
        subprocess.run(["strip", "-o", stripped, Path(binaries) / program], check=True)
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr, entry.create_system, entry.compress_type = 0o755 << 16, 3, zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(folder / "x86_64" / f"{function}.zip", "w") as archive:
            archive.writestr(entry, stripped.read_bytes(), compresslevel=1)
    return folder


def page(folder, url, key):
    """A page in `folder` whose buttons are tracked by the stage at `url`."""
    dist = HERE.parents[1] / "npm/dist"
    for name in ("tallymark.js", "tallymark.wasm", "fallback.js"):
        shutil.copyfile(dist / name, Path(folder) / name)
    (Path(folder) / "index.html").write_text(f"""<!doctype html>
<meta charset="utf-8"><title>Tallymark on local AWS</title>
<script src="tallymark.js" data-endpoint="{url}" data-username="demo" data-key="{key}" defer></script>
<h1>Tallymark on local AWS</h1>
<p>This page view and each press travel through the API, the authorizer, the collector, Firehose and the transform.</p>
<button data-tallymark-click="tea">Tea</button> <button data-tallymark-click="coffee">Coffee</button>
<p><a href="{url}/docs">What the collector answers</a></p>
""")


def main():
    """Runs the stack in the emulator with a page in front of it, until it is interrupted."""
    port = int(os.environ.get("PORT", "8787"))
    collector = HERE.parents[1] / "target/debug/tallymark-collector"
    with tempfile.TemporaryDirectory() as folder, emulator(folder, int(os.environ.get("GATEWAY_PORT", "0"))) as endpoint:
        values = deploy("local", packages(collector.parent, folder))
        stack = stack_module()
        origins = [word for host in ("localhost", "127.0.0.1") for word in ("--origin", f"http://{host}:{port}")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            stack.site("local", ["add", "demo", *origins], collector)
        keys = dict(line.split(": ", 1) for line in printed.getvalue().splitlines() if ": " in line)
        served = Path(folder) / "page"
        served.mkdir()
        page(served, values["TrackUrl"], keys["write_key"])
        handler = functools.partial(QuietHandler, directory=served)
        with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            print(f"""
page         http://localhost:{port}/
track URL    {values["TrackUrl"]}
site         demo
secret key   {keys["secret_key"]}
lake         AWS_ENDPOINT_URL={endpoint} aws s3 ls --recursive s3://{values["LakeBucket"]}/
Press Ctrl-C to stop.
""", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()

"""Schemathesis makes requests from the OpenAPI document, good and bad ones, and holds every answer against it."""

import os
import pathlib
import subprocess
import sys

import pytest
import requests

BINARY = os.environ["TALLYMARK_COLLECTOR"]
# How many requests for each operation, at most, and what they follow from.
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    add = [BINARY, "site", "add", "shop", "--origin", "https://shop.example", "--sites", folder / "sites.json"]
    printed = subprocess.run(add, check=True, capture_output=True, text=True).stdout
    keys = dict(line.split(": ", 1) for line in printed.splitlines())
    serve = [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder / "data", "--sites", folder / "sites.json"]
    process = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip().removeprefix("listening on ")
    yield url, keys
    process.terminate()
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("kind", ["secret_key", "write_key", "wrong", "none"])
def test_every_answer_is_as_the_document_says(collector, tmp_path, kind):
    url, keys = collector
    options = ["-a", f"shop:{keys.get(kind, kind)}"] if kind != "none" else []
    options += ["-H", "origin: https://shop.example"] if kind == "write_key" else []
    # Who may not, is told so whatever is asked: there is less to find.
    options += ["-n", EXAMPLES] if kind == "secret_key" else ["-n", str(int(EXAMPLES) // 4), "--phases", "fuzzing"]
    run = [pathlib.Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "openapi/schemathesis.toml"]
    document = tmp_path / "openapi.json"
    document.write_bytes(requests.get(f"{url}/openapi.json").content)
    run += ["run", document, "--url", url, "--seed", SEED, "--checks", "all", *options]
    environment = {**os.environ, "PYTHONPATH": str(HERE / "openapi"), "SCHEMATHESIS_HOOKS": "hooks"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 selected / 13 total" in done.stdout

"""Schemathesis makes requests from the OpenAPI document, good and bad ones, and holds every answer against it."""

import os
import pathlib
import subprocess
import sys

import pytest
import requests
from collector import running

# How many requests for each operation, at most, and what they follow from.
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with running(tmp_path_factory.mktemp("openapi")) as collector:
        yield collector


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

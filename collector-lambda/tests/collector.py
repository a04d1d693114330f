"""A real collector with one site, for as long as a test module needs it."""

import contextlib
import os
import subprocess

BINARY = os.environ["TALLYMARK_COLLECTOR"]


@contextlib.contextmanager
def running(folder):
    """Yields its address and the keys of the site `shop`. Afterwards it has stopped, as it was asked to."""
    add = [BINARY, "site", "add", "shop", "--origin", "https://shop.example", "--sites", folder / "sites.json"]
    printed = subprocess.run(add, check=True, capture_output=True, text=True).stdout
    keys = dict(line.split(": ", 1) for line in printed.splitlines())
    serve = [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder / "data", "--sites", folder / "sites.json"]
    process = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip().removeprefix("listening on ")
    yield url, keys
    process.terminate()
    assert process.wait(timeout=30) == 0

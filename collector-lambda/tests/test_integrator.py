"""The collector as any integrator would use it: Python's requests, the username and the secret key."""

import json

import pytest
import requests
from collector import running


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collector")
    with running(folder) as (url, keys):
        yield url, ("shop", keys["secret_key"]), keys
    lines = [json.loads(line) for file in (folder / "data").rglob("*.ndjson") for line in file.read_text().splitlines()]
    assert len(lines) == 5, "every accepted event is in the lake, once"


def test_a_button_click_is_received_and_counted(site):
    url, auth, _ = site
    answer = requests.post(f"{url}/button/click", json={"button_id": "abc", "session_id": "xyz"}, auth=auth)
    assert answer.status_code == 200
    assert answer.json() == {"message": "Received"}
    count = requests.get(f"{url}/button/click/count", params={"button_id": "abc"}, auth=auth)
    assert count.status_code == 200
    assert count.json() == {"count": 1}


def test_a_page_view_is_received_and_counted(site):
    url, auth, _ = site
    page = "https://shop.example/tea?q=1&r=ü#top"
    view = {"url": page, "session_id": "xyz", "referral_url": "https://search.example/", "useragent": "Mozilla/5.0",
            "ipaddress": "192.0.2.1"}
    assert requests.post(f"{url}/web/page_view", json=view, auth=auth).json() == {"message": "Received"}
    assert requests.get(f"{url}/web/page_view/count", params={"url": page}, auth=auth).json() == {"count": 1}
    assert requests.get(f"{url}/web/page_view/count", params={"url": "never"}, auth=auth).json() == {"count": 0}


@pytest.mark.parametrize("body", [{"session_id": "xyz"}, {"button_id": "abc"}, {"button_id": 7, "session_id": "xyz"}, [], "text"])
def test_a_bad_body_is_unprocessable(site, body):
    url, auth, _ = site
    answer = requests.post(f"{url}/button/click", json=body, auth=auth)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid_event"


def test_a_wrong_key_is_unauthorized(site):
    url, _, keys = site
    for auth in [("shop", "wrong"), ("nobody", keys["secret_key"]), None]:
        answer = requests.post(f"{url}/button/click", json={"button_id": "abc", "session_id": "xyz"}, auth=auth)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_the_write_key_writes_from_its_origin_and_does_not_read(site):
    url, _, keys = site
    auth = ("shop", keys["write_key"])
    body = {"button_id": "from a page", "session_id": "xyz"}
    origin = {"Origin": "https://shop.example"}
    assert requests.post(f"{url}/button/click", json=body, auth=auth).status_code == 403
    assert requests.post(f"{url}/button/click", json=body, auth=auth, headers=origin).status_code == 200
    count = requests.get(f"{url}/button/click/count", params={"button_id": "from a page"}, auth=auth, headers=origin)
    assert count.status_code == 403


@pytest.mark.parametrize("body", [{}, {"name": "charge", "value": 100, "nested": {"a": [1, None]}}])
def test_track_takes_any_object(site, body):
    url, auth, _ = site
    answer = requests.post(f"{url}/track", json=body, auth=auth)
    assert answer.status_code == 200
    assert answer.json() == {"message": "Received"}


def test_limits_and_health_need_no_key(site):
    url, _, _ = site
    assert requests.get(f"{url}/health").json() == {"status": "ok"}
    assert requests.get(f"{url}/v1/limits").json()["batch_events"] == 500

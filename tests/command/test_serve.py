"""The page: its requests, and all of it in a real browser."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from dcgan_jax.command import main
from dcgan_jax.command.serve.application import application
from dcgan_jax.command.serve.completing import Completer

PHOTO = encode(photo(3, 48, 40))
HOLE = np.zeros((40, 48), bool)
HOLE[10:20, 14:30] = True
NOTE = "colours became grey, because the prior makes grey images"
MASK = encode(Image.fromarray(HOLE))
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def completer(digits_run):
    return Completer([str(digits_run.run)])


@pytest.fixture
def post(completer):
    from starlette.testclient import TestClient

    client = TestClient(application(completer, ["testserver"]))

    def post(path, photograph=PHOTO, mask=MASK, **fields):
        files = {"photograph": ("face.png", photograph)} if photograph else {}
        if mask:
            files["mask"] = ("mask.png", mask)
        answer = client.post(path, files=files, data={"prior": completer.names[0], "crop": "4,2,36,36"} | fields)
        lines = answer.text.splitlines() if path == "/complete" and answer.status_code == 200 else [answer.text]
        return SimpleNamespace(status=answer.status_code, lines=[json.loads(line) for line in lines])

    post.client = client
    return post


def decoded(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def test_a_completion_has_the_bits_of_the_command(post, completer, tmp_path):
    (tmp_path / "face.png").write_bytes(PHOTO)
    (tmp_path / "mask.png").write_bytes(MASK)
    places = [
        "--images",
        str(tmp_path / "face.png"),
        "--masks",
        str(tmp_path / "mask.png"),
        "--out",
        str(tmp_path / "out"),
    ]
    search = ["--preset", "he2018", "--seed", "5", "--crop", "4,2,36,36", "--quiet"]
    assert main.main(["inpaint", "--prior", completer.names[0], *places, *search]) == 0
    for stage in ("compiling", "searching"):
        found = post("/complete", preset="he2018", seed="5").lines
        assert [line["stage"] for line in found] == [stage, "done"]
        expected = np.asarray(Image.open(tmp_path / "out" / "face.png"))
        np.testing.assert_array_equal(decoded(found[-1]["images"][0]), expected)
        assert found[-1]["region"] == [4, 2, 36, 36]
        assert found[-1]["note"] == NOTE


def test_a_photograph_comes_back_upright_with_its_transparent_hole(post):
    exif = Image.Exif()
    exif[0x0112] = 6
    (shown,) = post("/photograph", encode(photo(3, 48, 40), "JPEG", quality=95, exif=exif)).lines
    assert decoded(shown["picture"]).shape == (48, 40, 3) and "mask" not in shown
    layers = np.dstack([np.asarray(photo(3, 48, 40)), np.where(HOLE, 0, 255).astype(np.uint8)])
    (shown,) = post("/photograph", encode(Image.fromarray(layers))).lines
    np.testing.assert_array_equal(decoded(shown["mask"]) == 255, HOLE)


def test_a_mask_of_any_kind_is_read(post):
    layer = np.zeros((40, 48, 4), np.uint8)
    layer[HOLE] = 90, 20, 30, 255
    (found,) = post("/mask", mask=encode(Image.fromarray(layer))).lines
    np.testing.assert_array_equal(decoded(found["mask"]) == 255, HOLE)
    assert (found["width"], found["height"], found["missing"]) == (48, 40, HOLE.sum())
    assert "strokes were taken as missing" in found["note"]


def test_the_region_is_found_before_anything_is_painted(post):
    assert post("/region", mask=None, crop="").lines == [{"region": [4, 0, 40, 40], "note": NOTE}]
    assert post("/region", crop="1,2,30,30").lines[0]["region"] == [1, 2, 30, 30]


@pytest.mark.parametrize(
    ("path", "change", "problem"),
    [
        ("/photograph", {"photograph": b"text"}, "face.png cannot be read as an image: its image format is unknown"),
        ("/photograph", {"photograph": None}, "there is no photograph: choose a file"),
        ("/mask", {"mask": b"text"}, "mask.png cannot be read as an image"),
        ("/region", {"crop": "40,0,20,20"}, "does not lie inside an image of 48x40"),
        ("/region", {"prior": "/etc/passwd"}, "there is no prior '/etc/passwd': choose one of"),
        ("/region", {"preset": "bestest"}, "unknown preset 'bestest'"),
        ("/region", {"preset": "best"}, "this prior has no encoder"),
        ("/region", {"seed": "x"}, "`seed` is 'x'; it takes a whole number"),
        ("/region", {"mask": encode(Image.new("L", (3, 3)))}, "the mask of 'face' is 3x3, but the image is 40x48"),
        ("/complete", {"mask": None}, "nothing is missing: paint over what should be replaced"),
        ("/complete", {"crop": "0,0,12,12"}, "missing pixels lie outside the region"),
    ],
)
def test_wrong_input_is_named_on_the_page(post, path, change, problem):
    found = post(path, **change)
    assert problem in found.lines[-1]["problem"] and "\n" not in found.lines[-1]["problem"]
    assert found.status == (200 if path == "/complete" else 400)


def test_other_names_of_the_host_are_refused(post):
    assert post.client.get("/", headers={"host": "evil.example"}).status_code == 400
    page = post.client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert "no-store" in page.headers["cache-control"]


def test_wrong_options_are_named_before_the_page_opens(digits_run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        for options, problem in [
            (("--port", "70000"), "`port` is 70000; it takes 0 to 65535"),
            (("--prior", "nowhere"), "there is no prior 'nowhere'"),
            (("--prior", str(digits_run.run), "--port", str(used)), f"127.0.0.1:{used} cannot be used"),
        ]:
            assert main.main(["serve", *options]) == 2
            assert problem in capsys.readouterr().err


def test_two_visitors_are_served_in_turn(post, completer, monkeypatch):
    begun, go_on, at_work = threading.Event(), threading.Event(), []
    complete = completer.complete

    def slow(order):
        at_work.append(order)
        assert len(at_work) == 1
        begun.set()
        assert go_on.wait(60)
        result = complete(order)
        at_work.clear()
        return result

    monkeypatch.setattr(completer, "complete", slow)
    found = {}
    with post.client:  # one event loop for both
        visitors = [
            threading.Thread(target=lambda i=i: found.update({i: post("/complete", preset="he2018")})) for i in "ab"
        ]
        visitors[0].start()
        assert begun.wait(60)
        visitors[1].start()
        threading.Timer(1.0, go_on.set).start()
        for visitor in visitors:
            visitor.join(120)
    assert [line["stage"] for line in found["a"].lines][-1] == "done"
    first, *_, last = found["b"].lines
    assert first == {"stage": "waiting", "before": 1} and last["stage"] == "done"
    assert last["images"] == found["a"].lines[-1]["images"]


# In a browser


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def address(digits_run):
    command = [sys.executable, "-m", "dcgan_jax", "serve", "--prior", str(digits_run.run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    ) as server:
        yield re.match(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        server.terminate()


def test_a_visitor_paints_completes_and_downloads(browser, address, tmp_path, digits_run):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def find(name):
        return browser.find_element("id", name)

    def wait(condition):
        return WebDriverWait(browser, 120).until(lambda _: condition())

    (tmp_path / "face.png").write_bytes(encode(photo(3, 320, 280)))
    (tmp_path / "text.png").write_text("no picture")
    browser.get(address)
    wait(lambda: browser.find_elements("css selector", "#preset option"))
    find("open").send_keys(str(tmp_path / "text.png"))
    wait(lambda: "text.png cannot be read as an image" in find("problem").text)
    find("open").send_keys(str(tmp_path / "face.png"))
    wait(lambda: find("region").is_displayed())
    assert not find("complete").is_enabled() and not find("problem").text
    canvas = find("hole")
    for offset in (-20, 30):
        actions = ActionChains(browser).move_to_element_with_offset(canvas, offset, -10).click_and_hold()
        actions.move_by_offset(15, 5).move_by_offset(-5, 25).release().perform()
    wait(lambda: find("complete").is_enabled())
    find("undo").click()  # takes the second stroke back
    Select(find("preset")).select_by_value("he2018")
    find("complete").click()
    wait(lambda: find("stage-name").text.startswith("Done in"))
    assert find("result").is_displayed() and not find("problem").text
    downloads = tmp_path / "downloads"
    for link, name in (("save-mask", "mask.png"), ("download", "face.png")):
        browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", find(link))
        find(link).click()
        wait((downloads / name).is_file)

    hole = np.asarray(Image.open(downloads / "mask.png").convert("L")) >= 128
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    assert 60 < np.ptp(rows) + np.ptp(columns) < 150 and columns.max() < 185  # the first stroke alone
    places = [
        "--images",
        str(tmp_path / "face.png"),
        "--masks",
        str(downloads / "mask.png"),
        "--out",
        str(tmp_path / "out"),
    ]
    options = ["--preset", "he2018", "--elsewhere", "smooth", "--quiet"]
    assert main.main(["inpaint", "--prior", str(digits_run.run), *places, *options]) == 0
    expected, found = (np.asarray(Image.open(path)) for path in (tmp_path / "out" / "face.png", downloads / "face.png"))
    np.testing.assert_array_equal(found, expected)

    refused = f"{address}/photograph - Failed to load resource: the server responded with a status of 400 (Bad Request)"
    assert [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"] == [refused]
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert urls and all(url.startswith((address, "data:", "blob:")) for url in urls)

"""The page in a real browser, from disk and without a network: what a reader sees, reaches and is
told. Needs Chromium and its driver, which .ci/packages names.
"""

from __future__ import annotations

import json
import shutil
from importlib.resources import files

import pytest
import synthetic
import torch

import clipbench
from clipbench import report
from clipbench.store import Store

webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Select = pytest.importorskip("selenium.webdriver.support.select").Select
Wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver on this machine"
)
WIDE, PHONE = (1280, 900), (390, 844)
SWITCHES = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a study of two workloads and three optimizers, whose clips gain something."""

    def change(one):
        ended = "diverged" if one.lr > 0.5 and one.clip.name == "none" else "learned"
        return synthetic.rows(one, ended)

    store = synthetic.build(
        tmp_path_factory.mktemp("browser") / "small",
        problems=("digits", "temporal-order"),
        optimizers=("sgd", "momentum", "adam"),
        relative=(1.0,),
        change=change,
    )
    return report.write(store, ("html", "csv"))[0]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The page of a folder of watched loops, with a finding and the lines to write instead."""
    folder = tmp_path_factory.mktemp("browser") / "watched"
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with clipbench.watch(None, optimizer, folder):
        for length in range(1, 50):
            optimizer.zero_grad()
            (weight * length).sum().backward()
            optimizer.step()
            torch.nn.utils.clip_grad_norm_([weight], 5.0)
    return report.write(Store(folder), ("html", "csv"))[0]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for switch in SWITCHES:
        options.add_argument(f"--{switch}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_network_conditions(offline=True, latency=0, throughput=0)
    yield driver
    driver.quit()


def opened(browser, page, size, anchor=""):
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri() + anchor)
    if browser.execute_script("return !!document.getElementById('run-plot')"):
        drawn(browser)
    return browser


def drawn(browser, run=None):
    """Wait until a run is drawn, the given one if it is named."""

    def seen(driver):
        now = driver.execute_script("return document.getElementById('run-plot').dataset.run")
        return now and (run is None or now == run)

    Wait(browser, 20).until(seen)
    return browser.execute_script("return document.getElementById('run-plot').dataset.run")


def asked_for(browser):
    """The addresses that the page asked for."""
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    sent = [one for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [one["params"]["request"]["url"] for one in sent]


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_opens_without_a_request_or_a_complaint_and_nothing_is_wider_than_the_screen(
    browser, page, size
):
    opened(browser, page, size)
    assert browser.get_log("browser") == []
    assert {url for url in asked_for(browser) if not url.startswith("data:")} <= {page.as_uri()}
    widest = "return document.documentElement.scrollWidth - innerWidth"
    assert browser.execute_script(widest) <= 0
    for one in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", one)
    assert browser.execute_script(widest) <= 0


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_of_watched_loops_says_what_is_wrong_on_the_first_screen(browser, watched, size):
    driver = opened(browser, watched, size)
    assert driver.get_log("browser") == []
    assert asked_for(driver) == [watched.as_uri()]
    width = driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    code = driver.find_element("css selector", ".answer pre")
    assert "clip_grad_norm_" in code.text
    assert code.rect["y"] + code.rect["height"] < size[1]


@pytest.mark.parametrize(("size", "screens", "rows"), [(WIDE, 1, 5), (PHONE, 1.5, 3)])
def test_the_answer_is_on_the_first_screen(browser, page, size, screens, rows):
    """The sentences, the head of the table and its first rows, by where they stand."""
    opened(browser, page, size)
    bottoms = browser.execute_script(
        "return [...document.querySelectorAll('.verdicts tbody tr')]"
        ".map((row) => row.getBoundingClientRect().bottom)"
    )
    assert bottoms[rows - 1] <= screens * size[1]
    shown = "return [...document.querySelectorAll('.verdicts td.instead')][0].offsetWidth"
    assert browser.execute_script(shown) > 0


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_captions_are_readable(browser, page, size):
    """By their size on the screen, letters in figures as well."""
    opened(browser, page, size)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figcaption, caption, .verdicts td')]"
        ".map((one) => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 11
    letters = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].filter((one) => one.clientWidth)"
        ".map((one) => 6.5 * one.getBoundingClientRect().width / one.viewBox.baseVal.width)"
    )
    assert min(letters) >= 8


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_screen_reader_finds_nothing_serious(browser, page, size):
    """By axe's rules."""
    axe = files(pytest.importorskip("axe_core_python")).joinpath("axe.min.js")
    opened(browser, page, size)
    browser.execute_script(axe.read_text(encoding="utf-8"))
    found = browser.execute_async_script(  # a figure is one picture to a reader, with a name
        "axe.run({exclude: [['figure svg']]}, {resultTypes: ['violations']})"
        ".then(arguments[arguments.length - 1])"
    )
    told = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
    ]
    assert not told
    assert len(found["passes"]) > 10


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_what_is_wider_than_its_box_says_so_and_nothing_else_does(browser, page, size):
    """Tables in folds as well, once they are open; beside its words the answer fits on a screen."""
    opened(browser, page, size)
    browser.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true"
    )
    boxes = "return [...document.querySelectorAll('.scroll')].filter((box) => box.clientWidth)"
    wider = f"{boxes}.map((box) => box.scrollWidth > box.clientWidth + 1)"
    said = (
        f"{boxes}.map((box) => box.classList.contains('more')"
        " && getComputedStyle(box, '::before').content.includes('sideways'))"
    )
    Wait(browser, 10).until(
        lambda driver: driver.execute_script(wider) == driver.execute_script(said)
    )
    answer = "return document.querySelector('.answer .scroll').classList.contains('more')"
    assert not browser.execute_script(answer)


def test_every_run_can_be_chosen_and_a_link_remembers_it(browser, page):
    opened(browser, page, WIDE)
    before = drawn(browser)
    problem = Select(browser.find_element("id", "run-problem"))
    assert {one.text for one in problem.options} == {"digits", "temporal-order"}
    problem.select_by_visible_text("temporal-order")
    Select(browser.find_element("id", "run-optimizer")).select_by_visible_text("adam")
    seed = browser.find_element("id", "run-seed")
    seed.send_keys(Keys.ARROW_DOWN)  # by the keyboard alone
    after = browser.execute_script("return location.hash").removeprefix("#run=")
    assert after != before
    drawn(browser, after)
    words = browser.find_element("id", "run-words").text
    assert words.startswith("temporal-order, adam")
    assert "learned" in words
    assert len(browser.find_elements("css selector", "#run-plot svg path")) > 3
    told = browser.find_element("id", "run-replay").text
    assert told == f"clipbench replay {page.parents[1]} {after}"
    opened(browser, page, WIDE, f"#run={after}")
    assert drawn(browser, after) == after
    assert Select(browser.find_element("id", "run-problem")).first_selected_option.text == (
        "temporal-order"
    )
    assert browser.get_log("browser") == []


def test_a_run_with_a_clip_stands_beside_the_same_run_without_it(browser, page):
    opened(browser, page, WIDE)
    Select(browser.find_element("id", "run-clip")).select_by_visible_text("norm")
    chosen = browser.execute_script("return location.hash").removeprefix("#run=")
    drawn(browser, chosen)
    assert "Without the clip:" in browser.find_element("id", "run-words").text
    assert "what the clip left" in browser.find_element("id", "run-plot").text


def test_another_method_is_shown_at_the_setting_that_its_selection_seeds_chose(browser, page):
    """The learning rate and the threshold that the answer names, whatever was shown before."""
    opened(browser, page, WIDE)
    runs = json.loads(browser.execute_script("return document.getElementById('runs').textContent"))
    named = {key: browser.find_element("id", f"run-{key}") for key in ("optimizer", "clip", "lr")}
    for optimizer, clip in (("adam", "norm"), ("momentum", "none"), ("sgd", "value")):
        Select(named["optimizer"]).select_by_visible_text(optimizer)
        Select(named["clip"]).select_by_visible_text(clip)
        shown = next(
            run
            for run in runs
            if run["id"] == browser.execute_script("return location.hash").removeprefix("#run=")
        )
        assert (shown["optimizer"], shown["clip"]) == (optimizer, clip)
        assert shown["chosen"] == 2
    Select(named["lr"]).select_by_index(0)  # and any other may be chosen
    assert named["lr"].get_attribute("value") == Select(named["lr"]).options[0].text


@pytest.mark.parametrize(("clip", "drawn_there"), [("norm", True), ("value", False)])
def test_a_threshold_of_the_norm_is_a_rule_among_the_norms(browser, page, clip, drawn_there):
    """That of another clip is in another unit, and is not drawn."""
    opened(browser, page, WIDE)
    Select(browser.find_element("id", "run-clip")).select_by_visible_text(clip)
    shown = browser.execute_script("return location.hash").removeprefix("#run=")
    drawn(browser, shown or None)  # of the clip that is shown at first there is no change
    assert ("threshold" in browser.find_element("id", "run-plot").text) == drawn_there
    assert browser.get_log("browser") == []


def test_a_table_is_sorted_and_filtered(browser, page):
    opened(browser, page, WIDE)
    browser.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true"
    )
    scroll = browser.find_element("xpath", "//caption[starts-with(., 'Runs along')]/../..")
    head = scroll.find_elements("css selector", "th")[-1]
    column = (
        "return [...arguments[0].querySelectorAll('tbody tr')].map((row) => row.cells[3].innerText)"
    )
    for order in ("ascending", "descending"):
        browser.execute_script("arguments[0].querySelector('button').click()", head)
        assert head.get_attribute("aria-sort") == order
    by_clip = scroll.find_elements("css selector", "th")[1]
    browser.execute_script("arguments[0].querySelector('button').click()", by_clip)
    names = [
        row.split("\n")[0] for row in browser.execute_script(column.replace("[3]", "[1]"), scroll)
    ]
    assert names == sorted(names)
    field = scroll.find_element("xpath", "preceding-sibling::input")
    field.send_keys("adam digits")
    shown = browser.execute_script(
        "return [...arguments[0].querySelectorAll('tbody tr')].filter((row) => !row.hidden)"
        ".map((row) => row.innerText)",
        scroll,
    )
    assert 0 < len(shown) < len(names)
    assert all("adam" in row and "digits" in row for row in shown)

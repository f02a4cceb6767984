"""The report of a study in a real browser, wide and narrow."""

import itertools
import json
import shutil

import pytest

from cadc_jax.study import report
from cadc_jax.study.cells import Cell

pytestmark = pytest.mark.slow

WIDE, NARROW = 1200, 400  # pixels
LEAST_TEXT = 9  # pixels
TEXTS = """
return [...document.querySelectorAll("svg")].map(svg => {
  const box = x => {
    const r = x.getBoundingClientRect();
    return [r.left, r.top, r.right, r.bottom];
  };
  return [box(svg), [...svg.querySelectorAll("text")].map(text => {
    const {a, b} = text.getScreenCTM(), size = parseFloat(getComputedStyle(text).fontSize);
    return [text.textContent, size * Math.hypot(a, b), box(text)];
  })];
});
"""


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which logs errors and what it loads."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with its driver: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options, service) as made:
        yield made


@pytest.fixture
def page(compared):
    """The report of two models, four rates and a sweep; its address."""
    for model, rate in itertools.product(("two_tower", "dlrm"), (1.0, 0.5, 0.1, 0.01)):
        for arm, ranks in (("sample", [9, 0, -1, 5]), ("cadc_trainable", [0, 1, -1, 4])):
            costs = {"train_s": 20 * rate + 1, "factorize_s": 6.0, "sample_s": 0.5}
            if (arm, rate) != ("sample", 1):
                cell = Cell("ml-100k", arm, model, "uniform", rate)
                compared.add_ranks(cell, ranks, **costs)
    compared.add_ranks(Cell("ml-100k", "full", "dlrm"), [0, 3, -1, 0], train_s=30.0)
    plain = [row for row in compared.rows if row["arm"] == "cadc_trainable"]
    swept = [row | {"variant": "als.alpha=5", "validation": 0.7} for row in plain]
    report.write(compared.out, [*compared.rows, *swept], "this machine", "cadc study")
    return (compared.out / "report.html").as_uri()


def opened(browser, page, width):
    """Opens the page in a viewport of this width."""
    settings = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)
    browser.get_log("browser"), browser.get_log("performance")  # of earlier pages
    browser.get(page)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_loads_without_an_error_and_without_a_network(browser, page, width):
    opened(browser, page, width)
    assert "CADC" in browser.title
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [x["params"] for x in asked if x["method"] == "Network.requestWillBeSent"]
    assert {x["request"]["url"] for x in sent} == {page}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_as_wide_as_the_window(browser, page, width):
    opened(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_texts_of_all_plots_are_legible(browser, page, width):
    opened(browser, page, width)
    plots = browser.execute_script(TEXTS)
    assert len(plots) == 8  # by rate and by seconds, of each model and variant
    for (left, top, right, bottom), texts in plots:
        assert 0 <= left < right <= width
        assert len(texts) > 8
        for text, size, box in texts:
            assert size >= LEAST_TEXT, text
            assert left <= box[0] < box[2] <= right and top <= box[1] < box[3] <= bottom, text
        for (one, _, a), (other, _, b) in itertools.combinations(texts, 2):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, (one, other)


def test_a_click_on_a_header_sorts_its_table_and_a_second_turns_it_round(browser, page):
    opened(browser, page, WIDE)
    tables = browser.find_elements("css selector", "table")
    headers = tables[1].find_elements("css selector", "th")
    at = [header.text for header in headers].index("rate")

    def rates():
        rows = tables[1].find_elements("css selector", "tbody tr")
        return [float(row.find_elements("css selector", "td")[at].text) for row in rows]

    before = rates()
    headers[at].click()
    assert rates() == sorted(before, reverse=True) != before
    assert headers[at].get_attribute("aria-sort") == "descending"
    headers[at].click()
    assert rates() == sorted(before)
    other = [row.text for row in tables[0].find_elements("css selector", "tbody tr")]
    headers[0].click()
    assert headers[at].get_attribute("aria-sort") is None
    assert [row.text for row in tables[0].find_elements("css selector", "tbody tr")] == other


def test_cells_without_a_number_are_sorted_last(browser, page):
    opened(browser, page, WIDE)
    table = browser.find_elements("css selector", "table")[1]
    header = table.find_elements("css selector", "th")[-3]
    assert header.text == "train s"
    for _ in range(2):
        header.click()
        rows = table.find_elements("css selector", "tbody tr")
        found = [row.find_elements("css selector", "td")[-3].text for row in rows]
        assert found[-1] == "-" and found[0] != "-"

"""The report in a real browser: headless Chromium, driven by Selenium, on the run with hostile class names."""

import json
import shutil
import urllib.parse

import numpy as np
import pytest

from i2x_jax.config import printable
from i2x_jax.explanation.ranking import FIRST
from i2x_jax.report import content, gallery
from i2x_jax.results import findings, pictures
from i2x_jax.results.files import REPORT
from tests.report_run import CONTROL, HYPHENS, NAMES, SCRIPT, report_run

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver found (Debian: chromium, chromium-driver)"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
SECTIONS = ("first", "overview", "learning", "prototypes", "within", "between", "one", "refinement", "regression")
REFINED = "#pair=" + "-".join(urllib.parse.quote(name, safe="").replace("-", "%2D") for name in (HYPHENS, CONTROL))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(base):
    return report_run(base)


@pytest.fixture
def opened(browser, run):
    """Opens the report, with what follows # in its address, and returns the browser when all charts are drawn.

    Afterwards the console must be empty, and nothing but the file and pictures in it may have been asked for.
    """
    address = (run.path / REPORT).as_uri()

    def open_page(fragment="", width=1280, dark=False):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(address + fragment)
        all_drawn(browser)
        return browser

    yield open_page
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in asked)
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def all_drawn(browser):
    script = "return [...document.querySelectorAll('.plot')].every((place) => place.querySelector('svg'))"
    WebDriverWait(browser, 180).until(lambda driver: driver.execute_script(script))


def text_of(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


def choose(browser, selector, text):
    Select(browser.find_element(By.CSS_SELECTOR, selector)).select_by_visible_text(text)
    all_drawn(browser)


def shown(name):
    """A class name as the page shows it."""
    return "bell\\x07 \\u202eright\\u2028 100 %" if name == CONTROL else name


def test_every_view_opens(opened):
    browser = opened()
    for section in SECTIONS:
        link = browser.find_element(By.CSS_SELECTOR, f"nav a[href='#{section}']")
        link.click()
        assert browser.find_element(By.CSS_SELECTOR, f"#{section} h2").is_displayed()
        assert browser.execute_script(
            "const top = document.getElementById(arguments[0]).getBoundingClientRect().top;"
            "return top < innerHeight && top > -5",
            section,
        )
    assert len(browser.find_elements(By.CSS_SELECTOR, "#gallery li")) == 8
    assert len(browser.find_elements(By.CSS_SELECTOR, "#first li img")) == FIRST
    # Eleven or twelve charts: support has none where no sign is sure. Each says to those who listen what it shows.
    charts = browser.find_elements(By.CSS_SELECTOR, ".plot svg[aria-label], .plot svg [aria-label]")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".plot svg")) >= 11
    assert charts
    assert browser.execute_script("return [...document.images].every((image) => image.alt && image.complete)")
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")


def test_markup_in_a_class_name_is_text(opened):
    browser = opened("#class=" + urllib.parse.quote(SCRIPT, safe=""))
    assert text_of(browser, "#class-panel h3") == f"Class “{SCRIPT}”"
    # As text in the charts too, where long labels are cut, and nowhere as an element.
    assert SCRIPT[:10] in browser.execute_script("return document.querySelector('[data-chart=apart] svg').textContent")
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 4


@pytest.mark.parametrize(
    ("fragment", "selector", "expected"),
    [
        ("#pair=8-3", "#pair-panel h3", "“8” and “3”"),
        (REFINED, "#pair-panel h3", f"“{HYPHENS}” and “{shown(CONTROL)}”"),
        ("#pair=" + urllib.parse.quote(HYPHENS) + "-5", "#pair-panel h3", f"“{HYPHENS}” and “5”"),
        ("#class=9", "#class-panel h3", "Class “9”"),
        ("#prototype=5", "#prototype-panel h3", "Prototype 5"),
        ("#image=393", "#image-panel h3", "Image 393"),
    ],
)
def test_deep_links(opened, fragment, selector, expected):
    browser = opened(fragment)
    heading = browser.find_element(By.CSS_SELECTOR, selector)
    assert heading.text.startswith(expected)
    assert 0 <= browser.execute_script("return arguments[0].getBoundingClientRect().top", heading) < 300
    assert browser.execute_script("return document.activeElement === arguments[0]", heading)


@pytest.mark.parametrize("fragment", ["#pair=8-8", "#pair=8-nobody", "#class=%E0%A4%A", "#prototype=99", "#image=x"])
def test_a_link_to_nothing_says_so(opened, fragment):
    browser = opened(fragment)
    assert "This run has no" in text_of(browser, "main")


def test_links_within_the_page(opened, run):
    browser = opened(REFINED)
    story = run.story(int(run.arrays("curated")["left_out"][0]))
    thumb = browser.find_element(By.CSS_SELECTOR, "#pair-panel .thumbs a")
    row = int(thumb.get_attribute("href").split("=")[-1])
    thumb.click()
    assert text_of(browser, "#image-panel h3") == f"Image {row}: “{shown(run.story(row).label)}”"
    assert story.reason.split(":")[0] == "Left out"
    assert "Left out: at least 15 % of its saliency" in text_of(browser, "#image-panel")
    frames = browser.find_elements(By.CSS_SELECTOR, "#image-panel .frames img")
    assert len(frames) == len(run.steps) + 1
    browser.find_element(By.CSS_SELECTOR, "#image-panel table a").click()
    assert text_of(browser, "#prototype-panel h3").startswith("Prototype ")
    browser.back()
    WebDriverWait(browser, 10).until(lambda driver: driver.current_url.endswith(f"#image={row}"))
    all_drawn(browser)


def test_selectors(opened, run):
    browser = opened()
    choose(browser, "#choose-prototype", browser.find_elements(By.CSS_SELECTOR, "#choose-prototype option")[3].text)
    assert text_of(browser, "#prototype-panel h3") == f"Prototype {run.ranking[3].prototype}"
    choose(browser, "#choose-class", "9")
    assert text_of(browser, "#class-panel h3") == "Class “9”"
    choose(browser, "#choose-interval", "0–1")
    choose(browser, "#choose-a", "2")
    choose(browser, "#choose-b", "9")
    assert text_of(browser, "#pair-panel h3") == "“2” and “9”"
    pair = run.explanation.pair("2", "9")
    assert f"told apart from step {pair.told_apart} on" in text_of(browser, "#pair-panel .lead")
    # The same class on both sides is no pair: the side that was not chosen gives way.
    choose(browser, "#choose-a", "9")
    assert text_of(browser, "#pair-panel h3") == f"“9” and “{SCRIPT}”"
    choose(
        browser, "#choose-kind", next(o.text for o in browser.find_elements(By.CSS_SELECTOR, "#choose-kind option")[1:])
    )
    assert browser.current_url.endswith("#pair=9-" + urllib.parse.quote(SCRIPT, safe="()'!*"))
    assert browser.find_elements(By.CSS_SELECTOR, "#image-panel .thumbs img")


def test_pair_view_shows_the_figures(opened, run):
    browser = opened(REFINED)
    pair = run.explanation.pair(HYPHENS, CONTROL)
    panel = text_of(browser, "#pair-panel")
    assert "Neither this nor the score of the regression tells which images fail." in panel
    assert len(browser.find_elements(By.CSS_SELECTOR, "#pair-panel [data-chart=moved] svg")) == 2
    for each in pair.uncertain[:8]:
        assert f"{each.prototype} (score {each.score:.4f}, {each.flips} sign changes" in panel
    assert f"{sum(pair.counted)} of {len(pair.counted)} intervals count" in panel
    heat = "[data-chart=pair] svg"
    assert browser.find_elements(By.CSS_SELECTOR, f"{heat} .mark-rect path")
    # A diamond for every turn of a sure sign.
    turned = browser.find_elements(By.CSS_SELECTOR, f"{heat} .mark-symbol path[aria-roledescription='point']")
    assert len(turned) >= len(pair.uncertain)
    separating = "#pair-panel [aria-label='Separating prototypes']"
    rows = browser.find_elements(By.CSS_SELECTOR, f"{separating} tbody th")
    assert [row.text for row in rows] == [str(each.prototype) for each in pair.separating]
    pictures = browser.find_elements(By.CSS_SELECTOR, "#pair-panel td img")
    carriers = [content.carrier(pair, each) for each in pair.separating]
    described = [picture.get_attribute("alt") for picture in pictures]
    assert described == [f"Where it is strongest in images of “{printable(name)}”" for name in carriers]


def figures(browser, label):
    """The rows of a table of the page: what they are of, and their figures."""
    rows = browser.find_elements(By.CSS_SELECTOR, f"[aria-label='{label}'] tbody tr")
    cells = [
        browser.execute_script("return [...arguments[0].children].map((cell) => cell.innerText)", row) for row in rows
    ]
    return [(head, [cell.strip() for cell in rest]) for head, *rest in cells]


def test_class_view_is_an_account_that_adds_up(opened, run):
    browser = opened("#class=4")
    ledger = run.ledger("4")
    most = max(ledger.intervals, key=lambda each: abs(round(each.after, 3) - round(each.before, 3)))
    for interval in (most, ledger.intervals[-1]):
        change = interval.after - interval.before
        name = f"{interval.from_step}–{interval.to_step}"
        option = next(
            o.text
            for o in browser.find_elements(By.CSS_SELECTOR, "#choose-ledger option")
            if o.text.split(" ")[0] == name
        )
        choose(browser, "#choose-ledger", option)
        lead = text_of(browser, "#class-panel .lead")
        verb = "rose" if change >= 0 else "fell"
        assert f"Between step {interval.from_step} and {interval.to_step} confidence in “4” {verb} by " in lead
        rows = figures(browser, "Entries of the interval")
        before, *parts, after = [round(1000 * float(cells[0])) for _, cells in rows]
        assert before + sum(parts) == after == round(1000 * interval.after)
        for entry, (head, cells) in zip(interval.entries, rows[1:-3], strict=False):
            assert head.split()[:2] == ["prototype", str(entry.prototype)]
            assert round(1000 * float(cells[2])) + round(1000 * float(cells[3])) == round(1000 * float(cells[0]))
            assert printable(entry.rival) in cells[4] or cells[4] == "–"
        bars = browser.find_elements(By.CSS_SELECTOR, "[data-chart=waterfall] svg .mark-rect path")
        assert len(bars) == len(rows) - 1
    assert browser.find_elements(By.CSS_SELECTOR, "[data-chart=stacked] svg .mark-rect path")
    course = figures(browser, "The whole training")
    for column in range(len(run.steps)):
        before, *parts, after = [round(1000 * float(cells[column])) for _, cells in course]
        assert before + sum(parts) == after


def test_an_image_reads_as_an_account(opened, run):
    browser = opened()
    row = int(browser.find_element(By.CSS_SELECTOR, "#image-panel .thumbs a").get_attribute("href").split("=")[-1])
    browser = opened(f"#image={row}")
    rows = figures(browser, "Account of this image")
    confidence = np.array(run.array("confidence")[:, row, run.array("labels")[row]])
    assert rows[-1][1][:-1] == [f"{value:.3f}" for value in confidence[1:]]
    for column in range(len(run.steps)):
        before, *parts, after = [round(1000 * float(cells[column])) for _, cells in rows]
        assert before + sum(parts) == after


def test_by_keyboard(opened):
    browser = opened()

    def press(key):
        # To whatever has the focus: an element that was looked up could be drawn anew in between.
        ActionChains(browser).send_keys(key).perform()

    press(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the report"
    # Every stop can be reached and leaves the page usable: the first card of the gallery opens its prototype.
    for _ in range(40):
        press(Keys.TAB)
        if browser.execute_script("return document.activeElement.id").startswith("card-1"):
            break
    press(Keys.ENTER)
    assert text_of(browser, "#prototype-panel h3") == "Prototype 1"
    select = browser.find_element(By.ID, "choose-class")
    select.send_keys(Keys.ARROW_DOWN)
    assert text_of(browser, "#class-panel h3") == f"Class “{NAMES[1]}”"
    assert browser.switch_to.active_element.get_attribute("id") == "choose-class"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_width_and_scheme(opened, width, dark):
    browser = opened(REFINED, width=width, dark=dark)
    page, seen = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page == seen <= width
    colours = browser.execute_script(
        "const style = getComputedStyle(document.body);"
        "const label = document.querySelector('.plot svg .role-axis-label text');"
        "return [style.backgroundColor, style.color, getComputedStyle(label).fill]"
    )
    paper, ink, label = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert (paper < ink) == dark
    assert abs(paper - ink) > 450
    assert label == ink


@pytest.mark.parametrize(("width", "tiles"), [(390, 3), (1280, 6)])
def test_what_to_look_at_first_is_seen_first(opened, run, width, tiles):
    browser = opened(width=width)
    first = browser.find_element(By.CSS_SELECTOR, "#first li")
    picture, words = first.find_element(By.TAG_NAME, "img"), first.find_element(By.TAG_NAME, "p")
    assert first.text.startswith(f"Prototype {run.ranking[0].prototype}")
    assert words.text == findings.looks(run.ranking[0])
    # Whole images, in their own size, on the first screen and within the page.
    assert picture.size["width"] == tiles * (gallery.LOOK + pictures.GAP) - pictures.GAP
    assert picture.location["y"] + picture.size["height"] < 900
    assert picture.location["x"] + picture.size["width"] <= width
    beside = words.location["x"] > picture.location["x"] + picture.size["width"]
    assert beside == (width > 640)
    first.find_element(By.TAG_NAME, "a").click()
    assert text_of(browser, "#prototype-panel h3") == f"Prototype {run.ranking[0].prototype}"
    cards = [each.text.split("\n")[0] for each in browser.find_elements(By.CSS_SELECTOR, "#gallery li")]
    assert cards == [f"Prototype {each.prototype}" for each in run.ranking]


def test_print_has_every_chart(opened):
    browser = opened(REFINED)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    # What is left out is a finding; the pictures that one chooses from are not.
    assert browser.find_element(By.CSS_SELECTOR, "#pair-panel .thumbs").is_displayed()
    assert not browser.find_element(By.CSS_SELECTOR, "#image-panel .thumbs").is_displayed()
    assert browser.execute_script("return getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(printed["data"]) > 50_000


@pytest.mark.parametrize("fragment", ["", REFINED])
def test_nothing_jumps(opened, fragment):
    browser = opened(fragment)
    shift = browser.execute_async_script(
        "const done = arguments[0]; let sum = 0;"
        "new PerformanceObserver((list) => { for (const each of list.getEntries()) sum += each.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
        "setTimeout(() => done(sum), 300);"
    )
    assert shift < 0.05


def test_the_page_of_a_network_of_ones_own(browser, explained):
    """It has no refinement to show, and every view opens all the same."""
    for view, words in {
        "": "How a classifier of your images learned to decide",
        "#pair=red-blue": "as given",
        "#class=green": "green",
        "#prototype=2": "Prototype 2",
        "#image=3": "Image 3",
        "#refinement": "This network was trained elsewhere",
    }.items():
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get((explained.path / REPORT).as_uri() + view)
        all_drawn(browser)
        assert words.lower() in text_of(browser, "body").lower()
        assert (view, browser.get_log("browser")) == (view, [])

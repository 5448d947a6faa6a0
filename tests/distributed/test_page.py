"""Pages of made-up runs in a real browser: sizes, contrast, the lens by pointer and keys, and without scripts."""

import re
import shutil

import pytest

from hpc_stres.evaluation.report.facts import gather
from hpc_stres.evaluation.report.page import write_report
from hpc_stres.evaluation.report.several import write_several
from tests.distributed.browser import Browser
from tests.unit.made_up_run import make_finished_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        shutil.which("chromedriver") is None, reason="no chromium-driver on this machine"
    ),
]
RIGHT, DOWN, HOME, END = "\ue014", "\ue015", "\ue011", "\ue010"
# Every visible piece of text with its own colour and the colour behind it, where those are below level AA.
TOO_PALE = """
const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return text.startsWith('color(srgb')
  ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
const light = c => { const v = c.slice(0, 3).map(x => linear(x / 255));
  return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c[3] > 0.99) return c; } return [255, 255, 255, 1]; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), pale = []; let seen = 0;
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !e.checkVisibility() || e.closest('script,style')) continue;
  seen++;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  const size = parseFloat(getComputedStyle(e).fontSize);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5 || size < 11) pale.push([walker.currentNode.textContent, size, contrast]);
}
return [seen, pale];
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    home = tmp_path_factory.mktemp("pages")
    found = {}
    for classes, videos in ((8, 12), (101, 7)):
        folder = home / f"of {classes}"
        found[classes] = write_report(
            make_finished_run(folder, classes, videos, skill=0.7, looks=True), folder
        )
    configs = [
        (make_finished_run(home / f"seed{n}", 8, 6, seed=n, looks=True), home / f"seed{n}")
        for n in range(1, 10)
    ]
    found["nine"] = write_several([gather(*pair) for pair in configs], home / "nine.html")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("which", [8, 101, "nine"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_pages_fit_and_can_be_read(browser, pages, which, width):
    browser.open(pages[which])
    browser.emulate(width, 800)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    seen, pale = browser.run(TOO_PALE)
    assert seen > 100
    assert pale == []
    assert browser.console() == []
    # The answer and the first rows of the table are on the first screen.
    assert (
        browser.run("return document.querySelector('.lead').getBoundingClientRect().bottom") < 400
    )
    assert (
        browser.run("return document.querySelector('tbody tr').getBoundingClientRect().bottom")
        < 700
    )


def test_dark_pages_can_be_read(pages, tmp_path):
    with Browser(tmp_path, dark=True) as dark:
        for which in (8, "nine"):
            dark.open(pages[which])
            seen, pale = dark.run(TOO_PALE)
            assert seen > 100
            assert pale == []


def told(browser):
    return browser.run("return document.querySelector('.told').textContent")


def here(browser):
    return browser.run(
        "const here = document.querySelector('.part .here');"
        "return [here.dataset.cell, here.parentElement.querySelector('th').textContent]"
    )


@pytest.mark.parametrize("classes", [8, 101])
def test_the_lens_follows_pointer_and_keys(browser, pages, classes):
    browser.open(pages[classes])
    browser.emulate(1400, 900)
    names, last = (
        browser.run(
            "return JSON.parse(document.querySelector('[data-matrix] script').textContent).names"
        ),
        classes - 1,
    )
    browser.run(
        "document.querySelector('.over').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    browser.run("document.querySelector('.over').focus()")
    browser.press(HOME)
    assert here(browser) == ["0 0", names[0]]
    assert told(browser).startswith(f"{names[0]}: ")
    browser.press(RIGHT)
    browser.press(DOWN)
    browser.press(DOWN)
    assert here(browser) == ["2 1", names[2]]
    assert told(browser).startswith(f"{names[2]} taken for {names[1]}: ")
    browser.press(END)
    assert here(browser) == [f"{last} {last}", names[last]]
    browser.press(RIGHT)
    assert here(browser)[0] == f"{last} {last}", "it stays inside"
    left, top, side = browser.run(
        "const b = document.querySelector('.over svg').getBoundingClientRect(); return [b.left, b.top, b.width]"
    )
    cell = side / classes
    browser.point_at(left + 3.5 * cell, top + 5.5 * cell)
    assert here(browser) == ["5 3", names[5]]
    sizes = browser.run(
        "return [...document.querySelectorAll('.part th')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


def test_without_its_script_everything_is_still_there(pages, tmp_path):
    with Browser(tmp_path) as plain:
        plain.open(pages[101])
        plain.without_scripts()
        plain.open(pages[101])
        assert plain.run("return document.querySelectorAll('.part td').length") > 50
        assert " taken for " in told(plain)
        assert plain.run("return document.querySelectorAll('.all tbody tr').length") == 101
        assert plain.run("return document.querySelectorAll('.bars li').length") == 101


def test_on_paper_it_is_black_on_white(browser, pages):
    browser.open(pages[8])
    browser._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
        "media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}})  # fmt: skip
    colours = browser.run(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    hidden = browser.run("return getComputedStyle(document.querySelector('nav')).display")
    browser._call(
        "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": ""}}
    )
    assert re.findall(r"\d+", colours[0])[:3] == ["255", "255", "255"]
    assert max(int(n) for n in re.findall(r"\d+", colours[1])[:3]) < 60
    assert hidden == "none"

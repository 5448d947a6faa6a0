"""The report in a real browser, from disk, without a network."""

import shutil

import pytest

from tests.distributed.browser import Browser

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        shutil.which("chromedriver") is None, reason="no chromium-driver on this machine"
    ),
]


@pytest.fixture(scope="module")
def page(chain):
    return chain[0] / "report.html"


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("light")) as browser:
        yield browser


def background(browser):
    red, green, blue = browser.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )[:3]
    return (red + green + blue) / 3


def test_it_opens_without_an_error_and_shows_every_picture(light, page):
    light.open(page)
    assert light.console() == []
    pictures = light.run(
        "document.querySelectorAll('img').forEach(i => { i.loading = 'eager' });"
        "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(pictures) > 10
    assert min(pictures) > 0
    assert (
        light.run(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
        )
        == 0
    )
    charts = light.run(
        "return [...document.querySelectorAll('.plot svg, .over svg')].filter(s => s.checkVisibility())"
        ".map(s => s.getBoundingClientRect().width)"
    )
    assert min(charts) > 100


def test_every_part_is_there_with_a_heading(light, page):
    light.open(page)
    headings = light.run("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings == [
        "Examples, failures first", "Classes", "Confusions", "What each phase repaired and broke", "Learning curves",
        "Time", "What it cost", "Temporal kernels", "Motion in the appearance stream", "Provenance",
    ]  # fmt: skip
    junctions = light.run("return document.querySelectorAll('#junctions tbody tr').length")
    assert junctions == 4  # two stages, ST-ResNet and ST-ResNet*
    assert light.run("return document.querySelectorAll('#examples .plot svg').length") >= 1
    unnamed = light.run(
        "return [...document.querySelectorAll('img:not([alt]), svg:not([aria-label]):not([aria-hidden])')].length"
    )
    assert unnamed == 0


def test_it_is_readable_on_a_narrow_window(light, page):
    light.open(page)
    light.emulate(360, 800)
    assert light.run("return innerWidth") == 360
    assert light.run("return document.documentElement.scrollWidth") <= 360
    assert light.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 15
    light.emulate(1200, 900)


def test_every_link_and_fold_is_reached_by_keyboard(light, page):
    light.open(page)
    # What is inside a closed fold is reached when that is opened.
    stops = "[...document.querySelectorAll('a[href], summary')].filter(e => e.checkVisibility())"
    wanted = light.run(f"return {stops}.length")
    # Boxes that scroll are stops as well.
    others = light.run(
        "return document.querySelectorAll('.wide, .over, .lens, .strips, pre, .all').length"
    )
    reached = set()
    for _ in range(wanted + others + 15):
        light.press_tab()
        seen = light.run(
            "const e = document.activeElement;"
            f"const all = {stops};"
            "return [all.indexOf(e), getComputedStyle(e).outlineStyle]"
        )
        if seen[0] >= 0:
            reached.add(seen[0])
            assert seen[1] != "none", "the focus is not visible"
    assert len(reached) == wanted


def test_it_follows_the_readers_dark_or_light(light, page, tmp_path):
    light.open(page)
    assert background(light) > 200
    with Browser(tmp_path, dark=True) as dark:
        dark.open(page)
        assert background(dark) < 60
        colour = dark.run("return getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
        assert min(colour[:3]) > 180

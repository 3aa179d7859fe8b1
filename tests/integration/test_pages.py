"""Report and live page in a real browser: they load, fit a telephone, ask no network, follow the run, and complain of
nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.report import write_report
from cluster.report.publishing import Publisher, connect
from cluster.session import PrivateRedis
from cluster.state import RunDirectory
from cluster.watch import Watched, serve
from cluster.watch.mirror import Mirror
from tests.browser import CHROMIUM, Browser, browser
from tests.runs import add_step, finish, live_tree, make_run

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]
STRIP, FIRST = '.strip[data-run="0"]', '[data-step="12"]'
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def quiet(page: Browser) -> Browser:
    """The browser, with what earlier tests heard forgotten."""
    page.complaints.clear()
    page.requests.clear()
    return page


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


@contextmanager
def served(watched: Watched) -> Iterator[str]:
    """The address of a page."""
    with serve(watched, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)


def is_drawn(page: Browser) -> None:
    page.wait_for("[...document.images].every((image) => image.loading === 'lazy' || image.complete)")
    assert page.ask("document.querySelectorAll('svg.chart').length") >= 8
    assert page.ask("[...document.querySelectorAll('svg.chart path')].every((path) => path.getAttribute('d'))")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_report_fits_shows_its_pictures_and_asks_no_network(
    quiet: Browser, directory: RunDirectory, width: int, dark: bool
) -> None:
    finish(directory)
    path = write_report([directory.path], directory.report_path)
    quiet.size(width, 900, dark=dark)
    quiet.is_online(False)
    quiet.load(path.as_uri())
    is_drawn(quiet)
    quiet.is_online(True)
    assert quiet.ask(OVERFLOW) == 0
    background = quiet.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 200) == dark
    assert quiet.ask("document.querySelector('#before_after img').naturalWidth") == 64
    quiet.ask("document.querySelector('svg.chart').scrollIntoView()")
    box = quiet.ask("JSON.parse(JSON.stringify(document.querySelector('svg.chart').getBoundingClientRect()))")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    quiet.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
    quiet.wait_for("document.querySelector('.readout')?.textContent.startsWith('step ')")
    assert quiet.requests == [path.as_uri()]
    assert quiet.complaints == []


def test_the_page_of_a_run_elsewhere_comes_over_redis_and_follows_it(
    quiet: Browser, directory: RunDirectory, tmp_path: Path
) -> None:
    quiet.size(1280, 900)
    with PrivateRedis(tmp_path / "redis") as redis, connect(redis.url) as client:
        publisher = Publisher(directory, client)
        publisher.publish(live_tree(12))
        mirror = Mirror(redis.url, directory.key, tmp_path / "elsewhere")
        mirror.refresh()
        with served(Watched([mirror.path], [mirror])) as address:
            quiet.load(address)
            is_drawn(quiet)
            assert quiet.ask("document.querySelector('.pill').textContent") == "running"
            assert quiet.ask("document.getElementById('now').textContent.includes('rollout-0 READY v12')")
            assert quiet.ask(f"document.querySelectorAll('{STRIP} {FIRST} img').length") == 4
            add_step(directory, 13)
            publisher.publish(live_tree(13))
            quiet.wait_for("document.getElementById('top').textContent.includes('13 of 40')")
            quiet.wait_for(f"document.querySelector('{STRIP} b').textContent === 'step 13'")
            quiet.wait_for("document.getElementById('now').textContent.includes('step 13 was made')")
            assert quiet.complaints == []
            redis.stop()
            quiet.wait_for("document.getElementById('lost').textContent.includes('cannot read the page of trial')")
            quiet.load("about:blank#end")


def test_the_live_page_follows_the_run_and_keeps_what_the_reader_chose(
    quiet: Browser, directory: RunDirectory, tmp_path: Path
) -> None:
    other = make_run(tmp_path, "other", steps=5)
    quiet.size(1280, 900)
    with directory.locked():
        with served(Watched([directory.path, other.path])) as address:
            quiet.load(address)
            is_drawn(quiet)
            assert quiet.ask("document.querySelector('.pill').textContent") == "running"
            quiet.ask(
                "(() => { const words = document.querySelector('[name=words]'); words.value = 'number 2';"
                " words.dispatchEvent(new Event('input', { bubbles: true })); })()"
            )
            visible = f"[...document.querySelectorAll('{STRIP} [data-text]')].filter((card) => card.offsetParent)"
            assert quiet.ask(f"{visible}.length") == 1
            add_step(directory, 13)
            quiet.wait_for("document.getElementById('top').textContent.includes('13 of 40')")
            quiet.wait_for(f"document.querySelector('{STRIP} b').textContent === 'step 13'")
            assert quiet.ask("document.querySelector('[name=words]').value") == "number 2"
            assert quiet.ask(f"{visible}.map((card) => card.dataset.text)") == ["a red star, number 2 a plan of 2"]
            quiet.ask(
                f"(() => {{ const slider = document.querySelector('{STRIP} [name=step]'); slider.value = 0;"
                " slider.dispatchEvent(new Event('input', { bubbles: true })); })()"
            )
            quiet.wait_for(f"document.querySelector('{STRIP} {FIRST} img')")
            count = quiet.ask("Number(document.body.dataset.refreshed || 0)")
            quiet.wait_for(f"Number(document.body.dataset.refreshed) > {count}")
            assert quiet.ask(f"document.querySelector('{STRIP} b').textContent") == "step 12"
            assert quiet.complaints == []
            assert all(request.startswith(address) for request in quiet.requests)
        quiet.wait_for("!document.getElementById('lost').hidden")  # and says that it hears nothing more
    quiet.load("about:blank#end")

"""The page of tools/web_demo.py in a browser: Debian's Chromium, without a window."""

import base64
import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from conftest import DET_CONFIG, SEG_CONFIG
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from support.config import read_config
from support.web import server
from support.web.uploads import Limits
from tiny_data import write_image
from tiny_onnx import write_onnx

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement
    from support.web.finder import Finder

pytest.importorskip('gradio', reason='Gradio is not installed (requirements-web.txt)')
pytest.importorskip('selenium', reason='Selenium is not installed (requirements-browser.txt)')
CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
if not (CHROMIUM and DRIVER):
    pytest.skip(
        "no browser: install Debian's chromium and chromium-driver", allow_module_level=True
    )

PATIENCE = 60.0
"""Seconds until what should happen has not."""


class Site(SimpleNamespace):
    """A page that is served: url, folder, examples, visitors, number of searches."""

    def files(self) -> set[str]:
        return {path.name for path in self.folder.rglob('*') if path.is_file()}


@contextlib.contextmanager
def serve(model: 'Finder') -> Iterator[Site]:
    """What the command serves, from a thread of this process."""
    from support.web import examples, page, visitors

    site = Site(searched=0)
    predict = model._predict

    def counted(pixels: np.ndarray) -> object:
        site.searched += 1
        return predict(pixels)

    model._predict = counted
    with server.upload_folder() as folder, server.listen('127.0.0.1', 0) as listening:
        tries = examples.pictures(None, folder)
        site.folder, site.visitors = folder, visitors.Visitors(folder)
        site.examples = site.files()
        limits = Limits(megabytes=1)
        built = page.build(model, site.visitors, limits, tries, threshold=0.0)
        serving = server.server(built, limits.bytes)
        thread = threading.Thread(target=serving.run, kwargs=dict(sockets=[listening]))
        thread.start()
        site.url = f'http://127.0.0.1:{listening.getsockname()[1]}/'
        try:
            yield site
        finally:
            serving.should_exit = True
            thread.join()


def checkpoint(config: str, file: Path, options: list[str]) -> 'Finder':
    from support.web import finder

    cfg = read_config(config, dict(option.split('=', 1) for option in options))
    return finder.from_checkpoint(cfg, str(file), 'cpu')


@pytest.fixture(scope='module')
def detector(checkpoints: dict[str, Path], tiny_det: list[str]) -> Iterator[Site]:
    with serve(checkpoint(DET_CONFIG, checkpoints[DET_CONFIG], tiny_det)) as site:
        yield site


@pytest.fixture(scope='module')
def segmentor(checkpoints: dict[str, Path], tiny_seg: list[str]) -> Iterator[Site]:
    with serve(checkpoint(SEG_CONFIG, checkpoints[SEG_CONFIG], tiny_seg)) as site:
        yield site


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Site]:
    """A detector that tools/export_onnx.py could have written."""
    from support.web import finder

    pytest.importorskip('onnxruntime', reason='not installed (requirements-export.txt)')
    with serve(finder.from_exported(write_onnx(tmp_path / 'tiny.onnx', 'detection'))) as site:
        yield site


@pytest.fixture
def classifier() -> Iterator[Site]:
    """The brightest colour is the likeliest class."""
    from support.web import finder

    def predict(pixels: np.ndarray) -> DataSample:
        share = torch.from_numpy(pixels.mean(axis=(0, 1)))
        return DataSample().set_pred_score(share / share.sum())

    init_default_scope('mmpretrain')
    cfg = Config(dict(visualizer=dict(type='UniversalVisualizer')))
    meta = dict(classes=('red', 'green', 'blue'))
    with serve(finder.Finder('colours', 'c.pth', meta, predict, cfg, 'classification')) as site:
        yield site


class Window:
    """What a visitor does and sees."""

    def __init__(self, browser: 'Chrome', downloads: Path) -> None:
        self.browser, self.downloads = browser, downloads

    def open(self, url: str) -> None:
        self.browser.get(url)
        self.one('#upload input[type=file]')

    def all(self, selector: str) -> 'list[WebElement]':
        return self.browser.find_elements('css selector', selector)

    def one(self, selector: str) -> 'WebElement':
        return self.until(lambda: next(iter(self.all(selector)), None), selector)

    def until(self, see: Callable[[], object], what: str) -> object:
        """The first that is seen."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(StaleElementReferenceException):  # just drawn anew
                if seen := see():
                    return seen
            time.sleep(0.05)
        raise AssertionError(f'not seen: {what}; the page says: {self.one("body").text}')

    def button(self, text: str) -> 'WebElement':
        see = lambda: next((b for b in self.all('#upload button') if b.text == text), None)  # noqa: E731
        return self.until(see, text)

    def upload(self, path: Path) -> None:
        self.one('#upload input[type=file]').send_keys(str(path))

    def sentence(self, part: str) -> str:
        """What is said of the findings, once it says that."""

        def see() -> str | None:
            texts = [element.text for element in self.all('#sentence p')]
            return next((text for text in texts if part in text), None)

        return self.until(see, part)

    def toast(self, part: str) -> str:
        def see() -> str | None:
            texts = [element.text for element in self.all('.toast-body')]
            return next((text for text in texts if part in text), None)

        return self.until(see, part)

    def scores(self) -> list[float]:
        return [
            float(cell.text)
            for cell in self.all('#table [data-testid^="cell-"][data-testid$="-1"]')
        ]

    def picture(self) -> tuple[int, int]:
        """Width and height of the picture of the findings, when the browser has it."""
        script = (
            'const i = arguments[0]; return i.complete ? [i.naturalWidth, i.naturalHeight] : [0, 0]'
        )
        see = lambda: self.browser.execute_script(script, self.one('#picture img'))  # noqa: E731
        return tuple(self.until(lambda: (size := see())[0] and size, 'the picture'))

    def download(self, button: str) -> bytes:
        self.one(button).click()
        path = self.until(lambda: next(self.downloads.glob('*.found.*[!d]'), None), button)
        content = path.read_bytes()
        path.unlink()
        return content


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        'headless=new',
        'no-sandbox',  # which root cannot have
        'disable-dev-shm-usage',
        'disable-gpu',
        'window-size=1280,1000',
        'use-fake-device-for-media-stream',
        'use-fake-ui-for-media-stream',
    ):
        options.add_argument(f'--{argument}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    downloads = tmp_path_factory.mktemp('downloads')
    chrome = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        behaviour = dict(behavior='allow', downloadPath=str(downloads))
        chrome.execute_cdp_cmd('Browser.setDownloadBehavior', behaviour)
        allowed = ['clipboardReadWrite', 'clipboardSanitizedWrite', 'videoCapture']
        chrome.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=allowed))
        yield Window(chrome, downloads)
    finally:
        chrome.quit()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    write_image(tmp_path / 'photo.png', pixels)
    return tmp_path / 'photo.png'


def test_an_upload_is_searched_once_and_redrawn_from_memory(
    browser: Window, detector: Site, photo: Path
) -> None:
    browser.open(detector.url)
    heading = browser.one('h1').text
    assert heading == Path(DET_CONFIG).stem
    assert 'Classes (80)' in browser.one('body').text
    browser.upload(photo)
    said = browser.sentence('5 objects at 0.00')
    assert 'found in ' in said
    assert '(128 × 96 pixels)' in said
    assert browser.picture() == (128, 96)
    scores = browser.scores()
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert browser.all('#legend .entry')
    searched = detector.searched

    slider = browser.one('#threshold input[type=range]')
    slider.send_keys(browser_key('END'))
    browser.sentence('Nothing at 1.00')
    slider.send_keys(browser_key('HOME'))
    browser.sentence('5 objects at 0.00')
    box = browser.one('#threshold input[type=number]')
    box.send_keys(browser_key('CONTROL'), 'a')
    box.send_keys(str(level := np.floor(scores[0] * 100) / 100), browser_key('TAB'))
    browser.sentence(f'at {level:.2f} or above')
    browser.until(lambda: browser.scores() == [s for s in scores if s >= level], 'fewer rows')
    assert detector.searched == searched


def browser_key(name: str) -> str:
    from selenium.webdriver.common.keys import Keys

    return getattr(Keys, name)


def test_findings_can_be_downloaded(browser: Window, detector: Site, photo: Path) -> None:
    browser.open(detector.url)
    browser.upload(photo)
    browser.sentence('5 objects')
    found = json.loads(browser.download('#JSON'))
    assert [each['score'] for each in found['photo.png']] == pytest.approx(
        browser.scores(), abs=5e-4
    )
    picture = cv2.imdecode(np.frombuffer(browser.download('#PNG'), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (96, 128, 3)
    assert (picture != cv2.imread(str(photo))).any()


def test_what_is_no_picture_or_too_large_is_refused_in_one_line(
    browser: Window, detector: Site, tmp_path: Path, photo: Path
) -> None:
    text, disguised, large = (tmp_path / name for name in ('note.txt', 'note.png', 'large.png'))
    text.write_text('hello')
    disguised.write_text('hello')
    large.write_bytes(bytes(2**20 + 1))
    browser.open(detector.url)
    searched = detector.searched
    browser.upload(disguised)
    assert browser.sentence('Refused').splitlines() == [
        'Refused: note.png: no image; choose a JPEG, PNG, WebP, TIFF or BMP'
    ]
    browser.upload(text)
    assert len(browser.toast('note.txt').splitlines()) <= 3  # a heading, the line, a cross
    browser.upload(large)
    assert '1.0 Mb' in browser.toast('large.png')
    assert detector.searched == searched
    assert not detector.files() & {'note.txt', 'note.png', 'large.png'}
    browser.upload(photo)  # and it goes on
    browser.sentence('5 objects')


def test_pictures_come_by_paste_drop_camera_and_example(
    browser: Window, detector: Site, photo: Path
) -> None:
    chrome = browser.browser
    browser.open(detector.url)
    content = base64.b64encode(photo.read_bytes()).decode()
    blob = f'const blob = await (await fetch("data:image/png;base64,{content}")).blob();'
    chrome.execute_script(
        f'{blob} await navigator.clipboard.write([new ClipboardItem({{"image/png": blob}})])'
    )
    browser.one('#upload [aria-label="Paste from clipboard"]').click()
    browser.sentence('(128 × 96 pixels)')

    browser.one('#upload [aria-label="Remove Image"]').click()
    browser.until(lambda: not browser.all('#sentence p'), 'the findings gone')
    target = browser.one('#upload [aria-label="Drop an image file here to upload"]')
    chrome.execute_script(
        f'{blob} const data = new DataTransfer();'
        'data.items.add(new File([blob], "dropped.png", {type: "image/png"}));'
        'for (const type of ["dragenter", "dragover", "drop"]) arguments[0].dispatchEvent('
        'new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}))',
        target,
    )
    browser.sentence('(128 × 96 pixels)')

    browser.one('#examples img').click()
    browser.sentence('(256 × 192 pixels)')

    browser.one('#upload [aria-label="Remove Image"]').click()
    browser.until(lambda: not browser.all('#sentence p'), 'the findings gone')
    browser.one('#upload [aria-label="Capture from camera"]').click()
    browser.button('Click to Access Webcam').click()
    sees = 'return arguments[0].videoWidth > 0'
    browser.until(lambda: chrome.execute_script(sees, browser.one('#upload video')), 'the camera')
    browser.one('#upload [aria-label="capture photo"]').click()
    browser.sentence('5 objects')


def test_two_at_once_get_each_their_own_and_leave_nothing(
    browser: Window, detector: Site, tmp_path: Path, photo: Path
) -> None:
    chrome = browser.browser
    wide = tmp_path / 'wide.png'
    write_image(wide, np.zeros((80, 200, 3), np.uint8))
    browser.open(detector.url)
    first = chrome.current_window_handle
    chrome.switch_to.new_window('window')  # a tab behind another draws nothing
    browser.open(detector.url)
    for picture in (wide, photo):
        browser.upload(picture)
        chrome.switch_to.window(first)
    chrome.switch_to.window(first)
    browser.sentence('(128 × 96 pixels)')
    chrome.switch_to.window(chrome.window_handles[-1])
    browser.sentence('(200 × 80 pixels)')
    browser.until(lambda: len(detector.visitors) == 2, 'no more than two')
    assert {'photo.png', 'wide.png', 'photo.found.json'} <= detector.files()
    chrome.close()
    chrome.switch_to.window(first)
    chrome.get('about:blank')
    browser.until(lambda: detector.files() == detector.examples, 'all removed')
    assert len(detector.visitors) == 0


def test_a_segmentor_has_an_overlay_a_legend_and_no_threshold(
    browser: Window, segmentor: Site, photo: Path
) -> None:
    browser.open(segmentor.url)
    assert not browser.all('#threshold input')
    browser.upload(photo)
    browser.sentence('classes, found in')
    assert browser.picture() == (128, 96)
    shares = [entry.text.split()[-1] for entry in browser.all('#legend .entry')]
    assert sum(float(share.rstrip('%')) for share in shares) == pytest.approx(100, abs=1)
    labels = cv2.imdecode(
        np.frombuffer(browser.download('#labels'), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert labels.shape[:2] == (96, 128)


def test_an_exported_file_is_served_as_a_checkpoint_is(
    browser: Window, exported: Site, photo: Path
) -> None:
    browser.open(exported.url)
    assert browser.one('h1').text == 'tiny'
    browser.upload(photo)
    browser.sentence('2 objects at 0.00')
    assert browser.scores() == [0.9, 0.4]
    assert browser.all('#layers input')  # it has masks
    found = json.loads(browser.download('#JSON'))['photo.png']
    assert [each['class'] for each in found] == ['dog', 'cat']


def test_a_classifier_has_a_table_of_classes_and_no_threshold(
    browser: Window, classifier: Site, tmp_path: Path
) -> None:
    write_image(tmp_path / 'green.png', np.full((30, 40, 3), (10, 80, 10), np.uint8))
    browser.open(classifier.url)
    assert not browser.all('#threshold input')
    browser.upload(tmp_path / 'green.png')
    browser.sentence('The 3 likeliest of 3 classes')
    assert browser.scores() == [0.8, 0.1, 0.1]
    assert browser.picture()[0] >= 40  # drawn larger, for its words
    assert not browser.all('#layers input')


def test_the_browser_asks_nobody_else(browser: Window, detector: Site) -> None:
    browser.open(detector.url)
    asked = [
        message['params']['request']['url']
        for entry in browser.browser.get_log('performance')
        if (message := json.loads(entry['message'])['message'])['method']
        == 'Network.requestWillBeSent'
    ]
    ours = ('http://127.0.0.1:', 'data:', 'blob:', 'about:')
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(ours)] == []

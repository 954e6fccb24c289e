"""A headless Chromium for the tests of report.html."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"


@contextmanager
def open_page(path):
    """A WebDriver that shows the file, without a network; fails at the end if the console has an error."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium with its chromedriver: 'apt-get install chromium-driver' installs both")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        browser.get(path.as_uri())  # may return before the page's script has run
        WebDriverWait(browser, 60).until(lambda _: browser.execute_script("return document.readyState") == "complete")
        yield browser
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        browser.quit()


def pixels(browser, name):
    """The grey values of a canvas, (H, W), from 0 to 255."""
    script = """const canvas = document.getElementById(arguments[0]);
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, [...data]];"""
    height, width, values = browser.execute_script(script, name)
    return np.array(values, dtype=float).reshape(height, width, 4)[..., 0]


def set_value(browser, name, value, event="input"):
    """Sets a slider or a choice as a user does."""
    script = """const element = document.getElementById(arguments[0]);
    element.value = arguments[1];
    element.dispatchEvent(new Event(arguments[2]));"""
    browser.execute_script(script, name, str(value), event)

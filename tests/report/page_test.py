#!/usr/bin/env python3
"""Drives the page of `sae dashboard` in a headless Chromium, as a person would: mouse, keyboard, addresses.

usage: page_test.py PAGE [--json FILE] [--latents N] [--seconds S] [--shots FOLDER]
  PAGE         page.html, or the index.html of a folder
  --json FILE  what `sae dashboard --json` printed of the same latents: the first N (200) of them must show the same numbers and tokens
  --seconds S  the page must be usable within so many (default 1)
  --shots FOLDER  screenshots: overview, a latent, light and dark, narrow

Python's standard library alone; speaks the DevTools protocol over a web socket.
"""
import argparse
import base64
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request


class Socket:
    """As much of RFC 6455 as one client needs."""

    def __init__(self, address):
        host, _, path = address.removeprefix("ws://").partition("/")
        name, port = host.split(":")
        self.link = socket.create_connection((name, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.link.sendall((f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.link.recv(4096)
        self.rest = self.rest.split(b"\r\n\r\n", 1)[1]

    def take(self, count):
        while len(self.rest) < count:
            more = self.link.recv(1 << 16)
            if not more:
                raise ConnectionError("the browser has gone")
            self.rest += more
        out, self.rest = self.rest[:count], self.rest[count:]
        return out

    def send(self, text):
        payload, mask = text.encode(), os.urandom(4)
        size = len(payload)
        head = bytes([0x81]) + (bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + struct.pack(">H", size)
                                if size < 1 << 16 else bytes([0xFF]) + struct.pack(">Q", size))
        self.link.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))

    def receive(self):
        text = b""
        while True:
            first, second = self.take(2)
            size = second & 127
            if size > 125:
                size = struct.unpack(">H", self.take(2))[0] if size == 126 else struct.unpack(">Q", self.take(8))[0]
            part = self.take(size)
            if first & 15 in (0, 1):
                text += part
            if first & 0x80 and first & 15 in (0, 1):
                return text.decode()


class Browser:
    def __init__(self, program):
        self.folder = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.folder}", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        port = None
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                port = line.split("127.0.0.1:")[1].split("/")[0]
                break
        if port is None:
            sys.exit(f"{program} did not start")
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        self.socket = Socket(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
        self.number, self.errors = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.receive())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.hear(message)

    def hear(self, message):
        method, said = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(said["exceptionDetails"].get("exception", said["exceptionDetails"]).get("description", said)))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.errors.append("console." + said["type"])
        elif method == "Page.javascriptDialogOpening":  # a script out of the text has run; the page waits for an answer
            self.errors.append("alert: " + said["message"])
            self.socket.send(json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}))
        elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(("file:", "about:", "data:")):
            self.errors.append("asked for " + said["request"]["url"])

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(expression + ": " + str(result["exceptionDetails"]))
        return result["result"].get("value")

    def until(self, expression, seconds=20):
        end = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > end:
                raise AssertionError("did not happen: " + expression)
            time.sleep(0.02)

    def key(self, key, text=None):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def write(self, text):
        for letter in text:
            self.key(letter, letter)

    def middle(self, selector):
        box = self.value(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
                         "const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()")
        return {"x": box[0], "y": box[1]}

    def hover(self, selector):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self.middle(selector))

    def click(self, selector):
        where = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def look(self, width, height, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def shot(self, path):
        time.sleep(0.3)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


passed = 0


def check(what, truth, more=""):
    global passed
    if not truth:
        raise AssertionError(f"{what} {more}")
    passed += 1


LATENTS = "[...document.querySelectorAll('#table tr')].map((row) => Number(row.dataset.latent))"
TITLE = "document.querySelector('#view h2').firstChild.textContent"
SHOWN = """(() => ({
  contexts: [...document.querySelectorAll('#view section')].map((section) => [...section.querySelectorAll('.context')].map((context) => {
    const tokens = [...context.querySelectorAll('[data-value]')];
    return {tokens: tokens.map((t) => t.textContent), values: tokens.map((t) => Number(t.dataset.value)), active: context.querySelectorAll('.before [data-value]').length,
            hot: tokens.map((t) => t.dataset.hot !== undefined)};
  })),
  facts: document.querySelector('#view .facts').textContent,
  label: document.querySelector('#view h2 small').textContent,
  lists: Object.fromEntries([...document.querySelectorAll('#view figure')].filter((f) => f.querySelector('.list')).map((f) =>
    [f.querySelector('h3').textContent.split(' ')[0], [...f.querySelectorAll('.list > span:nth-child(odd)')].map((s) => s.firstChild.textContent)])),
  bars: [...document.querySelectorAll('#view svg rect title')].map((t) => Number(t.textContent.split(': ')[1].replace(/[^0-9]/g, ''))),
}))()"""


def single(text):
    """What the page makes of \\n, \\t, \\r and \\\\."""
    out, at = "", 0
    while at < len(text):
        pair = text[at:at + 2]
        known = {"\\n": "↵", "\\t": "⇥", "\\r": "␍", "\\\\": "\\"}.get(pair)
        out += known or text[at]
        at += 2 if known else 1
    return out


def open_page(browser, page, seconds):
    """The page, and the time from the start of its loading to a table that can be used."""
    # Once for the disk and the browser's own start, then timed.
    for _ in range(2):
        browser.call("Page.navigate", url="about:blank")
        browser.until("location.href === 'about:blank'")
        browser.call("Page.navigate", url=page.resolve().as_uri())
        browser.until("document.readyState === 'complete' && document.querySelector('#table tr') !== null", 60)
        took = browser.value("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    check("loads in time", took < seconds, f"{took:.2f} s, not {seconds}")
    return took


def behaves(browser):
    count = browser.value("count")
    check("the overview first", browser.value(TITLE) == "Overview")
    check("four plots", browser.value("document.querySelectorAll('#view svg').length + document.querySelectorAll('#view canvas').length") == 4)
    first = browser.value(LATENTS)
    check("one page of the table", len(first) == min(50, count))

    if count > 50:
        browser.click("#later")
        second = browser.value(LATENTS)
        check("the next page", second and not set(first) & set(second))
        browser.click("#earlier")
        check("the page before", browser.value(LATENTS) == first)
        browser.key("n")
        check("n turns the page", browser.value(LATENTS) == second)
        browser.key("p")
        check("p turns it back", browser.value(LATENTS) == first)

    for head, column in (("fires", "density"), ("max", "data.max")):
        button = f"th[data-by={head}] button"
        browser.click(button)
        values = browser.value(f"view.order.map((n) => {column}[n])")
        check(f"{head} sorts, largest first", values == sorted(values, reverse=True) and len(values) == count)
        browser.click(button)
        values = browser.value(f"view.order.map((n) => {column}[n])")
        check(f"{head} sorts, smallest first", values == sorted(values))
        check("the head says so", browser.value(f"document.querySelector('th[data-by={head}]').getAttribute('aria-sort')") == "ascending")
    browser.click("th[data-by=number] button")
    check("number sorts", browser.value(LATENTS) == first)

    token = browser.value("data.tokens.find((texts) => texts.length && /^[a-z]+$/.test(texts[0]))?.[0]")
    browser.key("/")
    check("/ goes to the search", browser.value("document.activeElement.id") == "search")
    browser.write(token)
    found = browser.value("view.order.map((n) => searchable[n])")
    check("search finds tokens", found and all(token in text for text in found), token)
    check("and nothing else is shown", browser.value("document.querySelectorAll('#table tr').length") == min(50, len(found)))
    browser.key("Escape")
    check("Esc empties the search", browser.value("view.order.length") == count and browser.value("document.getElementById('search').value") == "")
    last = browser.value("data.latent[count - 1]")
    browser.write(str(last))
    check("search finds numbers", last in browser.value("view.order.map((n) => data.latent[n])"))
    browser.write("qqzzqq")
    check("nothing found says so", browser.value("document.getElementById('pages').textContent") == "nothing found")
    browser.key("Escape")
    label = browser.value("data.label.find((text) => text !== '')")
    if label:
        browser.write(label)
        check("search finds labels", browser.value("view.order.some((n) => data.label[n] !== '')"), label)
        browser.key("Escape")
    browser.key("Escape")
    check("Esc leaves the search", browser.value("document.activeElement.id") != "search")

    browser.key("j")
    browser.until(f"{TITLE} === 'Latent ' + {first[0]}")
    browser.key("ArrowDown")
    browser.until(f"{TITLE} === 'Latent ' + {first[1]}")
    browser.key("k")
    browser.until(f"{TITLE} === 'Latent ' + {first[0]}")
    check("its row is marked", browser.value("document.querySelector('tr[aria-selected=true]').dataset.latent") == str(first[0]))
    browser.click("#table tr:nth-child(3)")
    browser.until(f"{TITLE} === 'Latent ' + {first[2]}")
    browser.value("history.back()")
    browser.until(f"{TITLE} === 'Latent ' + {first[0]}")

    alive = browser.value("data.latent[data.active.findIndex((n) => n > 0)]")
    browser.value(f"location.hash = '{alive}'")
    browser.until(f"{TITLE} === 'Latent ' + {alive} && document.querySelector('.context') !== null")
    browser.hover(".context .behind [data-hot]")
    browser.until("!document.getElementById('tip').hidden")
    tip, value = browser.value("document.getElementById('tip').textContent"), browser.value("document.querySelector('.context .behind [data-hot]').dataset.value")
    check("hover tells the value", value in tip, tip)
    browser.hover("#view h2")
    browser.until("document.getElementById('tip').hidden")
    check("colours differ by value", browser.value(
        "new Set([...document.querySelectorAll('.context [data-hot]')].map((t) => getComputedStyle(t).backgroundColor)).size") > 1
        or browser.value("document.querySelectorAll('.context').length") < 2)
    browser.click(".context .value")
    check("a click unfolds a context", browser.value("document.querySelector('.context').classList.contains('open')"))
    browser.key("Escape")
    browser.until(f"{TITLE} === 'Overview'")
    browser.value("location.hash = 'nonsense'")
    time.sleep(0.05)
    check("another address is the overview", browser.value(TITLE) == "Overview")
    check("markup stays text", browser.value("document.querySelectorAll('#view img, #table img, #view b b, h1 b').length") == 0)

    dead = browser.value("data.active.indexOf(0)")
    if dead >= 0:
        browser.value(f"location.hash = data.latent[{dead}]")
        browser.until("document.querySelector('#view .facts').textContent.startsWith('never fires')")
        check("a latent that never fires has no contexts", browser.value("document.querySelectorAll('.context').length") == 0)

    # Fluid: how long it takes until a key has its effect, with the layout that follows.
    times = browser.value("""(async () => {
      const out = [];
      for (const word of ['t', 'th', 'the', '']) { const t = performance.now(); search(word); document.body.offsetHeight; out.push(performance.now() - t); }
      for (const by of ['fires', 'max', 'number']) { const t = performance.now(); sort(by); document.body.offsetHeight; out.push(performance.now() - t); }
      if (view.descending) sort('number');
      return out; })()""")
    check("search and sort are fluid", max(times) < 150, f"{times} ms")
    return max(times)


def agrees(browser, file, limit):
    """What is shown of the first latents is what --json says."""
    expected = json.loads(pathlib.Path(file).read_text())["shown"][:limit]
    for latent in expected:
        number = latent["latent"]
        browser.value(f"location.hash = '{number}'")
        browser.until(f"{TITLE} === 'Latent {number}'")
        shown = browser.value(SHOWN)
        contexts = [latent["top"]] + [part["contexts"] for part in reversed(latent["examples"])] if latent["top"] else []
        check("sections", len(shown["contexts"]) == len(contexts), number)
        for seen, wanted in zip(shown["contexts"], contexts):
            check("contexts", len(seen) == len(wanted), number)
            for a, b in zip(seen, wanted):
                check("tokens", a["tokens"] == [single(token) for token in b["tokens"]], (number, a["tokens"], b["tokens"]))
                check("values", a["values"] == b["values"] and a["active"] == b["active"], (number, a, b))
                check("coloured", a["hot"] == [value > 0 for value in b["values"]], number)
        check("label", shown["label"] == latent["label"], number)
        if latent["active_rows"]:
            check("facts", f"({latent['active_rows']:,} of" in shown["facts"], shown["facts"])
        check("histogram", shown["bars"] == [n for n in latent["histogram"]["counts"] if n > 0], (number, shown["bars"]))
        lists = shown["lists"]
        for name, key in (("Promotes", "promoted"), ("Suppresses", "suppressed")):
            check(key, lists.get(name, []) == [single(token["text"]) for token in latent[key]], (number, lists.get(name), latent[key]))
        for name, key in (("Nearest", "nearest"), ("Fires", "co_active")):
            check(key, lists.get(name, []) == [str(other["latent"]) for other in latent[key]], (number, lists.get(name), latent[key]))
    return len(expected)


def shots(browser, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    busiest = browser.value("data.latent[data.max.indexOf(data.max.reduce((a, b) => Math.max(a, b)))]")
    number = os.environ.get("SAE_PAGE_LATENT", str(busiest))
    for name, width, height in (("wide", 1280, 720), ("narrow", 400, 860)):
        for dark in (False, True):
            browser.look(width, height, dark)
            for address in ("", number):
                browser.value(f"location.hash = '{address}'")
                browser.until(f"{TITLE} === '" + ("Latent " + address if address else "Overview") + "'")
                if name == "narrow":
                    browser.value("document.getElementById('view').scrollIntoView()")
                browser.shot(folder / f"{name}-{'dark' if dark else 'light'}-{'latent' if address else 'overview'}.png")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--json")
    parser.add_argument("--latents", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--shots")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome") or "chromium")
    options = parser.parse_args()
    browser = Browser(options.browser)
    try:
        browser.look(1360, 860, False)
        took = open_page(browser, options.page, options.seconds)
        slowest = behaves(browser)
        compared = agrees(browser, options.json, options.latents) if options.json else 0
        if options.shots:
            shots(browser, options.shots)
        check("no error, no warning, nothing from elsewhere", not browser.errors, browser.errors)
        print(f"{options.page}: {passed} checks; {browser.value('count')} latents loaded in {took:.2f} s, slowest search or sort {slowest:.0f} ms, "
              f"{compared} latents as in the JSON")
    except AssertionError as error:
        sys.exit(f"page_test: {options.page}: {error}\n{browser.errors}")
    finally:
        browser.close()


main()

"""The page in a real browser: nothing fetched, nothing complained of, every plot drawn."""

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading

import pytest
from sample import compacted, halved, study

from secateur.report.page import write_page

PROBE = """
<script>
window.complaints = [];
window.addEventListener('error', e => window.complaints.push(String(e.message || e.target.src)), true);
for (const kind of ['error', 'warn']) {
  const old = console[kind];
  console[kind] = (...words) => { window.complaints.push(words.join(' ')); old.apply(console, words); };
}
</script>
"""
ANSWER = """
<script>
window.addEventListener('load', () => setTimeout(() => {
  const plots = [...document.querySelectorAll('.plot')];
  const answer = {
    complaints: window.complaints,
    drawn: plots.map(p => p.querySelector('.main-svg') && p.getBoundingClientRect().height > 100),
    marks: plots.map(p => p.querySelectorAll(
      '.scatterlayer .trace, .barlayer .point, .heatmaplayer image').length),
    titles: plots.flatMap(p => [...p.querySelectorAll('.ytitle, .xtitle')].map(t => t.textContent)),
    requests: performance.getEntriesByType('resource').map(r => r.name),
    wide: document.documentElement.scrollWidth, inner: window.innerWidth,
  };
  const out = document.createElement('pre');
  out.id = 'answer';
  out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(answer))));
  document.body.appendChild(out);
}, 1500));
</script>
"""
FRAME = """
<link rel=icon href='data:,'>
<iframe id=frame src=report.html style='width:WIDTHpx;height:900px;border:0'></iframe>
<script>
const timer = setInterval(() => {
  const answer = document.getElementById('frame').contentDocument.getElementById('answer');
  if (!answer) return;
  clearInterval(timer);
  const copy = document.createElement('pre');
  copy.id = 'copy';
  copy.textContent = answer.textContent;
  document.body.append(copy);
}, 200);
</script>
"""
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --dump-dom "
    "--disable-background-networking --disable-component-update --virtual-time-budget=60000"
)


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found and shutil.which("apt-get") and os.geteuid() == 0:
        install = ["apt-get", "install", "-y", "-qq", "chromium"]
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, capture_output=True, check=False)
        found = shutil.which("chromium")
    if not found:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome on the PATH)")
    return found


def look(chromium, folder, width, *studies):
    """Open the page of ``studies`` with its probes and return what they saw at a window of ``width``.

    Headless Chromium's own window is never narrower than 500 pixels, so the page is looked at
    through a frame of the width wanted.
    """
    page = write_page(studies, folder / "report.html")
    text = page.read_text().replace("<head>", f"<head>{PROBE}", 1).replace("</body>", f"{ANSWER}</body>", 1)
    page.write_text(text)
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    quiet = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    quiet.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with contextlib.ExitStack() as stack:
            stack.callback(server.shutdown)
            url = f"http://127.0.0.1:{server.server_address[1]}/frame.html"
            command = [chromium, *OPTIONS.split(), f"--user-data-dir={folder}/profile", url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    answer = re.search(r'<pre id="copy">([^<]+)</pre>', done.stdout)
    assert answer, done.stderr[-500:]
    return json.loads(base64.b64decode(answer.group(1)))


def check(seen, width, plots):
    assert seen["complaints"] == []
    assert [r for r in seen["requests"] if not r.startswith("data:")] == []
    assert seen["drawn"] == [True] * plots
    assert all(marks > 0 for marks in seen["marks"])
    assert seen["inner"] == width
    assert seen["wide"] <= width, "nothing but tables, in boxes of their own, scrolls sideways"


@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_works_at_every_width(chromium, tmp_path, width):
    check(look(chromium, tmp_path, width, study()), width, plots=6)


@pytest.mark.parametrize("width", [1100, 390])
def test_fronts_over_several_studies_work_at_every_width(chromium, tmp_path, width):
    check(look(chromium, tmp_path, width, study(), compacted(), compacted("an <i>other</i>")), width, plots=8)


@pytest.mark.parametrize("width", [1100, 390])
def test_bars_of_smaller_networks_work_at_every_width(chromium, tmp_path, width):
    check(look(chromium, tmp_path, width, halved()), width, plots=6)

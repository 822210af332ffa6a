"""The page in a real browser: tabs, sorting and filtering work, nothing is logged as an error."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from cleanprior.benchmarks import page, tables
from cleanprior.benchmarks.page import Sheet

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
#: Read by the test from the page's own DOM after the browser has run it.
PROBE = """
<script>
const report = [];
const say = (name, value) => report.push(name + "=" + value);
try {
  const panels = [...document.querySelectorAll("[role=tabpanel]")];
  const all = (what) => [...panels[0].querySelectorAll(what)];
  const names = () => all("tbody tr").map((r) => r.cells[0].textContent);
  const visible = () => all("tbody tr:not([hidden])").map((r) => r.cells[0].textContent);
  const head = all("thead button").find((b) => b.textContent == "PSNR dB draw");
  say("start", names());
  head.click(); say("ascending", names());
  head.click(); say("descending", names());
  const search = panels[0].querySelector("input[type=search]");
  search.value = "em"; search.dispatchEvent(new Event("input"));
  say("filtered", visible());
  search.value = ""; search.dispatchEvent(new Event("input"));
  const box = panels[0].querySelector("[data-hide=reference]"); box.click();
  say("unreferenced", visible());
  const seen = () => all("thead th").filter((h) => h.offsetParent).map((h) => h.textContent);
  say("narrow", seen().includes("kid"));
  panels[0].querySelector("[data-show=further]").click();
  say("wide", seen().includes("kid"));
  all("thead button").find((b) => b.textContent == "kid").click(); say("kids", names());
  document.getElementById("tab-1").click();
  say("hidden", panels.map((p) => p.hidden));
  const image = document.querySelector("figure img"); image.click();
  say("zoomed", document.querySelector("dialog").open);
  document.querySelector("dialog").click();
  say("closed", !document.querySelector("dialog").open);
} catch (error) { say("threw", error); }
say("errors", window.problems.length);
document.body.innerHTML = "<p id=probe>" + report.join(";") + "</p>";
</script>
"""
WATCH = """<script>window.problems = [];
window.onerror = (m) => window.problems.push(m);
console.error = (m) => window.problems.push(m);</script>"""


def sheet(tab: str, folder: Path) -> Sheet:
    done = {
        "status": "done",
        "warning": "",
        "clean_images": 0,
        "train_images": 100,
        "is_own": False,
        "parameters": 1000,
        "evaluations": 24,
        "backwards": 72,
        "n": 1,
    }
    rows = [
        ("naive", 9.5, "done"),
        ("ambient", 18.2, "done"),
        ("em", 100.0, "done"),  # numbers are sorted as numbers: "100" < "9.5" as text
        ("gsure", float("nan"), "skipped: <b>why</b>"),
    ]
    lines = []
    for method, value, status in rows:
        line = {"method": method, "way": "mmps", **done, "status": status}
        for key in tables.NUMBERS:
            line[key] = value
            line[f"{key}_std"] = float("nan")
        line |= {"kid": -value, "kid_std": float("nan")}
        lines.append(line)
    summary = pd.DataFrame(lines)
    best = {"psnr": [("em", "mmps")]}
    picture = folder / "samples.png"
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(picture)
    return Sheet(
        tab,
        f"title <{tab}>",
        tables.display(summary, ("naive",)),
        summary,
        tables.marks(summary, best),
        ["a note & more"],
        [picture],
        {"naive": [{"status": "done", "seed": 0, "device": "cpu", "time": "now"}]},
        ("naive",),
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    sheets = [sheet("one", tmp_path), sheet("two", tmp_path)]
    return page.write(tmp_path / "report.html", "demo", "a <demo>", sheets)


def test_the_page_is_one_file_and_escapes_what_it_shows(written: Path) -> None:
    text = written.read_text()
    assert "<b>why</b>" not in text and "a &lt;demo&gt;" in text and "title &lt;one&gt;" in text
    # Nothing is loaded from anywhere: every address is inside the file.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(a.startswith("data:") for a in addresses)
    assert text.count('class="best"') == 2  # once a tab


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_tabs_sorting_and_filters_work_in_a_browser(written: Path) -> None:
    text = written.read_text().replace("<head>", f"<head>{WATCH}", 1)
    probed = written.with_name("probed.html")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"))
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{probed}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<p id="probe">([^<]*)</p>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    said = dict(item.split("=", 1) for item in found[1].split(";"))
    assert said == {
        "start": "naive,ambient,em,gsure",
        "ascending": "naive,ambient,em,gsure",
        "descending": "em,ambient,naive,gsure",  # a dash stays last
        "filtered": "em",
        "unreferenced": "em,ambient,gsure",
        "narrow": "false",
        "wide": "true",
        "kids": "em,ambient,naive,gsure",
        "hidden": "true,false",
        "zoomed": "true",
        "closed": "true",
        "errors": "0",
    }

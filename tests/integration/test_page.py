"""The page in a real browser: tabs, sorting and filtering work, nothing is logged as an error."""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from cleanprior.benchmarks import page
from cleanprior.benchmarks.figures.grids import STRIPS
from cleanprior.benchmarks.page import Sheet
from cleanprior.benchmarks.tables.display import display, marks
from cleanprior.benchmarks.tables.summary import NUMBERS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: Two images of one pixel a row; a label that would end the script that holds it.
STRIPES = {
    "count": 2,
    "width": 1,
    "height": 1,
    "said": "",
    "strips": [
        {"kind": kind, "label": label, "row": row, "uri": "data:image/png;base64,"}
        for kind, label, row in (
            ("measured", "measurements", []),
            ("row", "ambient: one draw</i>", ["ambient", "mmps"]),
            ("row", "em: one draw</script><i>", ["em", "mmps"]),
            ("row", "em: mean", ["em", "mmps"]),
            ("truth", "truth", []),
        )
    ],
}
#: Read by the test from the page's own DOM after the browser has run it.
PROBE = """
<script>
const report = [];
const say = (name, value) => report.push(name + "=" + value);
try {
  const panels = [...document.querySelectorAll("[role=tabpanel]")];
  const all = (what) => [...panels[0].querySelectorAll(what)];
  const names = () => all(".results tbody tr").map((r) => r.cells[0].textContent);
  const visible = () => all(".results tbody tr:not([hidden])").map((r) => r.cells[0].textContent);
  const head = all(".results thead button").find((b) => b.textContent.startsWith("PSNR dB"));
  say("start", names());
  head.click(); say("ascending", names());
  head.click(); say("descending", names());
  const search = panels[0].querySelector("input[type=search]");
  search.value = "em"; search.dispatchEvent(new Event("input"));
  say("filtered", visible());
  search.value = ""; search.dispatchEvent(new Event("input"));
  const box = panels[0].querySelector("[data-hide=reference]"); box.click();
  say("unreferenced", visible());
  const heads = all(".results thead th");
  const seen = () => heads.filter((h) => h.offsetParent).map((h) => h.textContent);
  say("narrow", seen().includes("kid"));
  panels[0].querySelector("[data-show=further]").click();
  say("wide", seen().includes("kid"));
  all(".results thead button").find((b) => b.textContent == "kid").click(); say("kids", names());
  const pairs = panels[0].querySelector(".pairs");
  const row = pairs.querySelector("[data-row]");
  const turn = (node, value, kind) => { node.value = value; node.dispatchEvent(new Event(kind)); };
  const pick = (select, value) => turn(select, value, "change");
  pick(row, 0);
  const cells = [...pairs.querySelectorAll("tbody td")];
  say("matrix", cells.map((c) => c.textContent + "/" + c.className.trim()));
  say("tip", cells[5].title);
  pick(row, 2);
  say("against", pairs.querySelector("tbody tr").textContent);
  const compare = panels[0].querySelector(".compare");
  const first = () => compare.querySelector(".tiles figure").querySelectorAll("small");
  const labels = () => [...first()].map((t) => t.textContent);
  say("groups", compare.querySelectorAll(".tiles figure").length);
  say("chosen", labels());
  pick(compare.querySelector("select"), 0);
  say("picked", labels());
  const tile = () => compare.querySelector(".tile").offsetWidth;
  const before = tile(), zoom = compare.querySelector("[data-zoom]");
  turn(zoom, 100, "input");
  say("larger", tile() > before);
  turn(zoom, 0, "input");
  panels[0].querySelector("[data-show=further]").click();
  say("sideways", document.documentElement.scrollWidth > document.documentElement.clientWidth);
  const seen_in = all(".results tbody tr:first-child td").filter((c) => c.offsetParent);
  say("inside", seen_in.every((c) => c.getBoundingClientRect().right <= innerWidth));
  document.getElementById("tab-1").click();
  say("hidden", panels.map((p) => p.hidden));
  const image = document.querySelector(".zoom"); image.focus(); image.click();
  say("zoomed", document.querySelector("dialog").open);
  document.querySelector("dialog").click();
  say("closed", !document.querySelector("dialog").open);
} catch (error) { say("threw", error); }
say("errors", window.problems.length);
const told = document.createElement("p"); told.id = "probe"; told.textContent = report.join(";;");
document.body.replaceChildren(told);
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
    lines: list[dict] = []
    for method, value, status in rows:
        line = {"method": method, "way": "mmps", **done, "status": status}
        for key in NUMBERS:
            line[key] = value
            line[f"{key}_std"] = float("nan")
        line |= {"kid": -value, "kid_std": float("nan")}
        lines.append(line)
    summary = pd.DataFrame(lines)
    best = {"psnr": [("em", "mmps")]}
    picture = folder / "samples.png"
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(picture)
    strips = folder / STRIPS
    strips.write_text(json.dumps(STRIPES))
    pairs = [("ambient", "em", -2.0, -3.0, -1.0, 0.01), ("naive", "em", 0.5, -1.0, 2.0, math.nan)]
    comparisons = pd.DataFrame(
        [
            {"metric": "psnr", "a": a, "a_way": "mmps", "b": b, "b_way": "mmps"}
            | {"difference": d, "low": low, "high": high, "p_holm": p}
            for a, b, d, low, high, p in pairs
        ]
    )
    return Sheet(
        tab,
        f"title <{tab}>",
        display(summary, ("naive",)),
        summary,
        marks(summary, best),
        ["a note & more"],
        [picture, strips],
        {"naive": [{"status": "done", "seed": 0, "device": "cpu", "time": "now", "cell": "abc"}]},
        ("naive",),
        verdict="em restores best. Nothing <else> is separable.",
        comparisons=comparisons,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    sheets = [sheet("one", tmp_path), sheet("two", tmp_path)]
    prior = tmp_path / "cells" / "naive-0" / "prior"
    prior.mkdir(parents=True)
    (prior.parent / "record-abc.json").write_text("{}")
    path = tmp_path / "tables" / "demo" / "report.html"
    return page.write(path, "demo", "a <demo>", sheets)


def test_the_page_is_one_file_and_escapes_what_it_shows(written: Path) -> None:
    text = written.read_text()
    assert "<b>why</b>" not in text and "a &lt;demo&gt;" in text and "title &lt;one&gt;" in text
    assert "Nothing &lt;else&gt; is separable." in text and "</script><i>" not in text
    # Nothing is loaded from anywhere: every address is inside the file.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(a.startswith("data:") for a in addresses)
    assert len(re.findall(r'class="[^"]*\bbest\b[^"]*"', text)) == 2  # once a tab
    assert str(written.parents[2] / "cells" / "naive-0" / "prior") in text
    assert STRIPS not in text  # shown, not offered as a download


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [500, 1400])
def test_everything_on_the_page_works_in_a_browser(written: Path, width: int) -> None:
    text = written.read_text().replace("<head>", f"<head>{WATCH}", 1)
    probed = written.with_name("probed.html")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"))
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={written.parent / 'profile'}"]
        + [f"--window-size={width},900", "--dump-dom", f"file://{probed}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<p id="probe">([^<]*)</p>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    said = dict(item.split("=", 1) for item in html.unescape(found[1]).split(";;"))
    assert said == {
        "start": "naive,ambient,em,gsure",
        "ascending": "naive,ambient,em,gsure",
        "descending": "em,ambient,naive,gsure",  # a dash stays last
        "filtered": "em",
        "unreferenced": "em,ambient,gsure",
        "narrow": "false",
        "wide": "true",
        "kids": "em,ambient,naive,gsure",
        # A difference is the row on the left minus the one above; orange: worse, bold: Holm's.
        "matrix": "/,/,+0.5/,/,/,−2/minus sure,−0.5/,+2/plus sure,/",
        "tip": "ambient minus em: 95 % from −3 to −1; p (Holm) 0.01",
        "against": "em−2from −3 to −1; p (Holm) 0.01",
        "groups": "2",
        "chosen": "measurements,em: mean,ambient: one draw</i>,truth",
        "picked": "measurements,ambient: one draw</i>,ambient: one draw</i>,truth",
        "larger": "true",
        "sideways": "false",
        "inside": "true",
        "hidden": "true,false",
        "zoomed": "true",
        "closed": "true",
        "errors": "0",
    }

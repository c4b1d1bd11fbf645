"""The website of the pages: built without a warning, whole, and without the network."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest
from browsers import find_browser, opened, own_requests

ROOT = Path(__file__).resolve().parents[1]
# Tags and attributes whose target a browser fetches by itself.
FETCHED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "object": ("data",), "embed": ("src",),
}  # fmt: skip
FETCHED_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "manifest",
    "modulepreload",
}


def build(folder, config=ROOT / "mkdocs.yml"):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build",
         "--config-file", str(config), "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Document(HTMLParser):
    """Anchors of a page, where its links lead, and what a browser fetches for it."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.fetched += [given[name] for name in FETCHED.get(tag, ()) if name in given]
        if tag == "link" and FETCHED_LINKS & set(given.get("rel", "").split()):
            self.fetched.append(given["href"])


def documents(folder):
    return {
        path.relative_to(folder).as_posix(): Document(path.read_text())
        for path in folder.rglob("*.html")
    }


def target_of(page, link):
    """Path in the site and anchor that a link of a page leads to; None where it leads outside."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    if not parts.path:
        return page, unquote(parts.fragment)
    path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(parts.path)))
    return path.removeprefix("./"), unquote(parts.fragment)


def broken_links(folder):
    pages = documents(folder)
    broken = []
    for page, document in pages.items():
        # This one is for servers, which show it at any address: its links begin with a slash.
        if page == "404.html":
            continue
        for link in document.links + document.fetched:
            found = target_of(page, link)
            if found is None:
                continue
            path, anchor = found
            if not (folder / path).is_file():
                broken.append(f"{page}: {link}")
            elif anchor and path in pages and anchor not in pages[path].anchors | {"__skip"}:
                broken.append(f"{page}: {link} has no such anchor")
    return broken


def foreign_files(folder):
    """What pages and their styles would have a browser fetch from elsewhere."""
    found = [
        f"{page}: {url}"
        for page, document in documents(folder).items()
        for url in document.fetched
        if urlsplit(url).netloc
    ]
    for style in folder.rglob("*.css"):
        urls = re.findall(
            r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^\"')\s]+)", style.read_text()
        )
        found += [f"{style.name}: {url}" for url in urls]
    return found


def unreachable_pages(folder):
    pages = documents(folder)
    reached, left = set(), ["index.html"]
    while left:
        page = left.pop()
        if page in reached or page not in pages:
            continue
        reached.add(page)
        targets = [target_of(page, link) for link in pages[page].links]
        left += [target[0] for target in targets if target]
    return set(pages) - reached - {"404.html"}


def test_no_link_or_anchor_is_broken(site):
    assert broken_links(site) == []


def test_every_page_is_reached_by_links(site):
    assert unreachable_pages(site) == set()
    shown = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    for page in (ROOT / "docs").glob("*.md"):
        name = "index" if page.stem == "README" else page.stem
        assert f"docs/{name}.html" in shown


def test_nothing_is_fetched_from_the_network(site):
    assert foreign_files(site) == []
    # The theme's script would load the library for such diagrams.
    assert not [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]


def test_what_is_broken_foreign_or_lonely_is_found(tmp_path):
    (tmp_path / "lonely.html").write_text('<img src="//cdn.example/x.png">')
    (tmp_path / "site.css").write_text("@import 'https://fonts.example/a.css';")
    text = '<p id="here"></p><a href="#here"></a><a href="#there"></a><a href="gone.html"></a>'
    (tmp_path / "index.html").write_text(text)
    assert len(broken_links(tmp_path)) == 2
    assert len(foreign_files(tmp_path)) == 2
    assert unreachable_pages(tmp_path) == {"lonely.html"}


def test_a_link_to_nowhere_and_a_page_without_a_place_end_the_build(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "lost.md").write_text("# Lost\n")
    (tmp_path / "pages" / "new.md").write_text("# New\n\n[gone](docs/gone.md)\n")
    text = (ROOT / "mkdocs.yml").read_text()
    text = text.replace("docs/site/pages", f"{tmp_path}/pages")
    text = text.replace("docs/site/hooks.py", f"{ROOT}/docs/site/hooks.py")
    text = text.replace("nav:\n  - Quick", "nav:\n  - new.md\n  - Quick", 1)
    # Its paths are from the root too, and only for a server of pages in the making.
    text = re.sub(r"^watch: .*$", "", text, flags=re.M)
    (tmp_path / "mkdocs.yml").write_text(text)
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "gone.md" in done.stderr
    assert "lost.md" in done.stderr


def test_links_are_called_by_words_not_by_files(site):
    index = (site / "docs" / "index.html").read_text()
    assert '<a href="your_archive.html">your archive</a>' in index
    assert '<a href="../cluster/index.html">cluster</a>' in index
    named = re.compile(r"<a [^>]*>[^<]*\.md</a>")
    assert not [page for page in site.rglob("*.html") if named.search(page.read_text())]


def test_the_command_lines_page_has_every_verb(site):
    page = (site / "commands.html").read_text()
    for verb in ("pretrain", "jobs logs", "evaluate compare", "sweep"):
        assert f">terrafm {verb}<" in page
    assert "<code>--dry-run</code>" in page


def test_the_pictures_are_what_the_code_draws(tmp_path):
    file = ROOT / "docs" / "figures" / "draw.py"
    spec = importlib.util.spec_from_file_location("figures_draw", file)
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.draw(tmp_path)
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for name in draw.PICTURES:
        assert f"](images/{name})" in pages
        drawn, kept = (cv2.imread(str(p / name)) for p in (tmp_path, ROOT / "docs" / "images"))
        assert drawn.shape == kept.shape, f"{name}: run docs/figures/draw.py"
        # Letters differ by a version of matplotlib; a bar of another length is far above.
        difference = np.abs(drawn.astype(int) - kept).mean()
        assert difference < 1.0, f"{name}: run docs/figures/draw.py"
    # The numbers that the pages quote.
    frequent, _ = draw.mean_targets()["one center (DINO, alpha = 1)"]
    assert frequent[:4].sum() == pytest.approx(0.53, abs=0.005)
    frequent, _ = draw.mean_targets()["dual centering (alpha = 0.8, the default)"]
    assert frequent[:4].sum() == pytest.approx(0.49, abs=0.005)
    assert draw.frequent_classes() == ("tree cover", "grassland", "cropland")
    counts = draw.resampled_counts(draw.land_cover(), exponent=0.5)
    assert counts[95] == 264


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_and_searches_it_from_the_disk(site, tmp_path, width):
    browser = find_browser()
    for page in ("index.html", "docs/configuration.html", "docs/index.html?q=collapse"):
        dom, console, urls = opened(browser, site / page, tmp_path, f"--window-size={width},900")
        assert console == []
        assert own_requests(urls) == set()
    # The last page was opened with a question.
    assert re.search(r"\d+ matching documents", dom)

"""The pages in a real browser: nothing asked for, nothing complained of, every chart drawn."""

import json

import pytest
from browsers import find_browser, opened, own_requests

from terrafm.report.page import Page, render
from terrafm.report.run_page import run_sections
from terrafm.report.run_record import read_run


@pytest.fixture(scope="session")
def browser():
    """Path of a Chromium."""
    return find_browser()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_run_is_drawn_without_a_network(browser, troubled, collapsed, tmp_path, width):
    for names in ([troubled], [troubled, collapsed]):
        runs = [read_run(str(folder.path), folder.path.name) for folder in names]
        file = tmp_path / "page.html"
        file.write_text(render(Page("Runs", "", run_sections(runs))))
        dom, console, urls = opened(browser, file, tmp_path, f"--window-size={width},900")
        assert console == []
        assert own_requests(urls) == set()
        figures = dom.count('<figure class="chart"')
        assert figures > 10
        assert dom.count('data-drawn="true"') == figures
        assert dom.count("<canvas") == figures


@pytest.mark.slow
def test_a_script_in_a_name_does_not_run(browser, run_folder, tmp_path):
    folder = run_folder().started().lines(5)
    take = "document.title='taken'"
    hostile = f"</script><script>{take}</script><img src=x onerror={take}>"
    (folder.path / "failure.json").write_text(json.dumps({"message": hostile}))
    file = tmp_path / "page.html"
    page = render(Page("Safe", hostile, run_sections([read_run(str(folder.path), hostile)])))
    file.write_text(page)
    dom, console, urls = opened(browser, file, tmp_path)
    assert "<title>Safe</title>" in dom
    assert console == []
    # Were the escaping to fail, the page's policy would still refuse it.
    file.write_text(page.replace("</main>", "<script>document.title='taken'</script></main>"))
    dom, console, _ = opened(browser, file, tmp_path)
    assert "<title>Safe</title>" in dom
    assert len(console) == 1
    assert own_requests(urls) == set()


@pytest.mark.slow
def test_a_page_of_a_run_that_goes_on_follows_it_and_can_be_stopped(browser, troubled, tmp_path):
    file = tmp_path / "page.html"
    run = read_run(str(troubled.path), "run")
    file.write_text(render(Page("Run", "", run_sections([run]), refresh=30)))
    dom, console, _ = opened(browser, file, tmp_path)
    assert console == []
    assert "this page loads itself again every 30 s" in dom
    assert '<button type="button">Stop</button>' in dom

"""The page of hand-made folders: its content, that text of a model stays text, and that it works in a browser."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from report_folders import HOSTILE, Reading, write_run

from erprm_trl.report import write_report


LABELS = "labels at eta = 0"


def test_text_of_a_model_is_data_and_nothing_is_loaded(tmp_path):
    page = write_report(write_run(tmp_path / "run"), eta=0.0).read_text(encoding="utf-8")
    reading = Reading(page)
    assert [tag for tag, _ in reading.tags].count("script") == 2 and "img" not in dict(reading.tags)
    assert not any(
        name in ("src", "srcset", "style") or name.startswith("on") for _, attrs in reading.tags for name in attrs
    )
    assert all(attrs.get("href", "#").startswith(("#", "data:image/png;")) for _, attrs in reading.tags)
    assert "/home/someone" not in page and "hacked = 2'>" not in page
    (collection,) = json.loads(reading.data)["collections"]
    assert [source["kind"] for source in collection["sources"]] == ["model", "model", "label"]
    assert collection["sources"][2]["name"] == LABELS
    question = collection["questions"][0]
    assert [solution["steps"][0] for solution in question["solutions"]] == HOSTILE[:3]
    assert question["solutions"][0]["rewards"] == [[1, 0]]
    assert question["scores"][0] == [[0.9, 0.8], [0.95, 0.7], [0.2, 0.1]]
    assert question["aggregates"][0]["min"] == [0.8, 0.7, 0.1] and question["aggregates"][0]["product"][2] == 0.02
    assert question["scores"][2][0] == [0.5, 1]  # labels: the mean of two continuations, and the outcome


def write_samples_with(run, *changes):
    """A run with one question, whose three solutions are changed."""
    samples = write_run(run, num_questions=1) / "samples"
    rows = [json.loads(line) for line in (samples / "rollouts-00000.jsonl").read_text().splitlines()]
    rows = [row | {"prefix_rewards": []} | change for row, change in zip(rows, changes, strict=True)]
    (samples / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((samples / "manifest.json").read_text())
    manifest["config"]["num_continuations"] = 0
    (samples / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_formulas_code_and_folds_are_data(tmp_path):
    half = "\\frac{1}{2}"
    first = {"question": "What is $x$ for $5?", "answer": half, "prediction": half}
    first["steps"] = ["It costs $5 and $7.\n", "So \\(x</script>\\) \\href{javascript:1}{x} and `y`"]
    thinking = {"steps": [f"thought {number}\n" for number in range(5)] + ["</think>\n", "so 1"]}
    long = {"steps": [f"step {number}\n" for number in range(20)]}
    run = write_samples_with(tmp_path / "run", first, thinking, long)
    (run / "samples" / "step_scores.json").unlink()
    data = json.loads(Reading(write_report(run).read_text(encoding="utf-8")).data)
    first, thinking, long = data["collections"][0]["questions"][0]["solutions"]
    assert data["collections"][0]["questions"][0]["question"] == ["What is ", ["math", 0], " for $5?"]
    assert first["prediction"] == data["collections"][0]["questions"][0]["answer"] == [["math", 1]]
    assert first["steps"][0] == "It costs $5 and $7."
    assert first["steps"][1] == ["So ", ["math", 2], " \\href{javascript:1}{x} and ", ["code", "y"]]
    assert [formula["source"] for formula in data["formulas"]] == ["$x$", "\\frac{1}{2}", "\\(x</script>\\)"]
    assert data["formulas"][0]["math"] == ["math", {}, ["mi", {}, "x"]]
    assert (first["fold"], thinking["fold"], long["fold"]) == (None, [0, 6], [4, 16])
    assert (first["thinking"], thinking["thinking"], long["thinking"]) == (0, 6, 0)


def test_every_link_in_the_page_has_its_section_and_every_table_scrolls(tmp_path):
    reading = Reading(write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8"))
    targets = {attrs["href"] for tag, attrs in reading.tags if tag == "a"}
    sections = {f"#{attrs['id']}" for tag, attrs in reading.tags if tag in ("section", "main") and "id" in attrs}
    assert targets == sections and len(targets) > 5
    before = [reading.tags[index - 1] for index, (tag, _) in enumerate(reading.tags) if tag == "table"]
    assert before and all(attrs.get("class") == "scroll" for _, attrs in before)


def test_two_pages_of_a_folder_are_equal_and_ids_are_unique(tmp_path):
    run = write_run(tmp_path / "run")
    first, second = (write_report(run, tmp_path / name, eta=0.0).read_bytes() for name in ("1.html", "2.html"))
    assert first == second
    ids = [attrs["id"] for _, attrs in Reading(first.decode()).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    figures = set(re.findall(r'<svg[^>]* aria-label="([^"]*)"', first.decode()))
    assert len(figures) > 4 and {name.split("-")[0] for name in ids} >= {"f0", "f1", "f2"}


def test_a_limit_keeps_whole_questions_and_says_so(tmp_path):
    page = write_report(write_run(tmp_path, num_questions=10), tmp_path / "there" / "page.html", max_solutions=13)
    (collection,) = json.loads(Reading(page.read_text(encoding="utf-8")).data)["collections"]
    assert [question["index"] for question in collection["questions"]] == [0, 2, 5, 7]
    assert (collection["numQuestions"], collection["numSolutions"]) == (10, 30)


def test_errors_and_files_that_are_not_shown(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an existing folder of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nothing to show.*output_dir of the run"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="aggregation: got 'max'"):
        write_report(tmp_path, aggregation="max")
    run = write_run(tmp_path / "run")
    (run / "best_of_n.json").write_text("{ cut")
    (run / "samples" / "step_scores.json").write_text(json.dumps({"model": [[[0.5]]]}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "best_of_n.json: skipped, because the file is damaged." in page
    assert "step_scores.json: skipped, because no solutions in the folder fit these scores." in page


def test_the_recipe(tmp_path, capsys):
    from trl import TrlParser

    path = Path(__file__).parents[2] / "recipes" / "report.py"
    spec = importlib.util.spec_from_file_location("recipe_report", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    run = write_run(tmp_path / "run")
    (arguments,) = TrlParser(recipe.ReportArguments).parse_args_and_config(["--folder", str(run), "--title", "Mine"])
    recipe.main(arguments)
    assert str(run / "report.html") in capsys.readouterr().out
    assert "<h1>Mine</h1>" in (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    """A real Chromium without a window."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


def open_page(browser, path, width=1280, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    features.append(
        {"name": "prefers-reduced-motion", "value": "reduce"}
    )  # a click does not wait for smooth scrolling
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())


def shown(browser, selector):
    return [element for element in browser.find_elements("css selector", selector) if element.is_displayed()]


def overall(browser):
    return [element.text.split()[-1] for element in shown(browser, ".solution .overall")]


def choose(browser, name, text):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", name)).select_by_visible_text(text)


@pytest.mark.slow("starts a browser")
def test_in_a_browser(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, write_report(write_run(tmp_path / "run"), eta=0.0))
    assert len(shown(browser, ".solution")) == 6
    assert overall(browser)[:3] == ["0.800", "0.700", "0.100"]  # sorted by score
    texts = [element.text for element in shown(browser, ".step .text")]
    assert HOSTILE[0] in texts and HOSTILE[1] in texts and HOSTILE[2] in texts

    browser.find_element("id", "disagree").click()
    assert overall(browser) == ["0.700", "0.700"]
    assert all("scored high" in card.text for card in shown(browser, ".solution"))
    browser.find_element("id", "disagree").click()
    choose(browser, "graded", "right")
    assert len(shown(browser, ".solution")) == 2
    choose(browser, "graded", "right or wrong")
    choose(browser, "by", "product")
    assert overall(browser)[0] == "0.720"
    choose(browser, "source", LABELS)
    assert shown(browser, ".step b")[0].text == "0.50"

    first = shown(browser, ".step")[0]
    first.send_keys(Keys.NULL)  # sets the focus, as the keyboard does
    assert "2 continuations" in shown(browser, "#detail")[0].text and "1 0" in shown(browser, "#detail")[0].text
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert "Reward of the whole solution: 1" in shown(browser, "#detail")[0].text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not shown(browser, "#detail")
    browser.find_element("id", "search").send_keys("so 2")
    from selenium.webdriver.support.ui import WebDriverWait

    count = "return document.querySelectorAll('.solution').length"
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script(count) == 2)
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []


@pytest.mark.slow("starts a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_width_and_scheme(browser, tmp_path, width, scheme):
    open_page(browser, write_report(write_run(tmp_path / "run")), width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.match(r"rgba?\((\d+)", colour)[1])
    assert red > 200 if scheme == "light" else red < 60
    assert browser.get_log("browser") == []


@pytest.mark.slow("starts a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_formulas_code_and_folds_in_a_browser(browser, tmp_path, width):
    from selenium.webdriver.support.ui import WebDriverWait

    wide = " + ".join(f"\\frac{{{number}}}{{x_{{{number}}}}}" for number in range(40))
    first = {"steps": [f"Wide: \\[{wide}\\] and \\({wide}\\)\n", f"```\n{'long = code ' * 40}\n```\n"]}
    second = {"steps": ["A $\\boxed{5}$ for $5\n", "\\(\\text{<img src=x onerror=window.hacked=1>}</a></math>\\)"]}
    long = {"steps": [f"step {number}\n" for number in range(20)], "prediction": wide}
    run = write_samples_with(tmp_path / "run", first, second, long)
    scores = [[[0.9] * 2, [0.8] * 2, [0.7] * 10 + [0.1] + [0.7] * 9]]
    (run / "samples" / "step_scores.json").write_text(json.dumps({"prm": scores}))
    open_page(browser, write_report(run), width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(shown(browser, ".step math")) == 4 and len(shown(browser, ".step math mfrac")) == 80
    assert "for $5" in shown(browser, ".step .text")[2].text and len(shown(browser, ".step math .boxed")) == 1
    assert len(shown(browser, ".step code.block")) == 1
    (fold,) = shown(browser, ".fold")
    assert fold.text == "More steps: 12 steps, lowest score 0.10" and len(shown(browser, ".step")) == 4 + 8
    visible = "return [...document.querySelectorAll('.step')].filter((step) => step.checkVisibility()).length"
    fold.find_element("tag name", "summary").click()
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script(visible) == 4 + 20)
    browser.find_element("id", "search").send_keys("step 10")
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script(visible) == 20)  # the fold opens for its match
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []


@pytest.mark.slow("starts a browser")
def test_a_thousand_solutions(browser, tmp_path):
    """The page shows a part at a time, so that the document stays small. Filters see all solutions."""
    open_page(browser, write_report(write_run(tmp_path / "run", num_questions=333)))
    assert len(shown(browser, ".solution")) == 48
    assert "999 solutions of 333 questions." in browser.find_element("id", "status").text
    browser.find_element("id", "disagree").click()
    assert "333 solutions of 333 questions." in browser.find_element("id", "status").text
    shown(browser, ".pager .next")[0].click()
    assert "Page 2 of" in shown(browser, ".pager .place")[0].text
    assert len(browser.find_elements("css selector", ".solution")) <= 48

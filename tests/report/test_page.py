"""The page: what it gathers from hand-made folders, that a model's text stays text, and that it works in a browser."""

import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from erprm_trl.report import write_report


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 2'>",
    "{{ 7 * 7 }} {% raw %}",
    "line\u2028separator \u0000 and \ud800 alone",
    "\u202eright to left\u202c שלום é 🙂",
]
LABELS = "labels at eta = 0"


def write_run(folder, num_questions=2):
    """Questions of three solutions: right and scored high, wrong and scored high, wrong and scored low."""
    samples = folder / "samples"
    samples.mkdir(parents=True)
    config = {"num_questions": num_questions, "chunk_size": num_questions, "num_solutions": 3, "splitter": "newline"}
    config |= {"num_continuations": 2, "sampler": {"model": "/home/someone/policy"}}
    (samples / "manifest.json").write_text(json.dumps({"config": config, "versions": {"torch": "2"}}))
    rows, scores = [], []
    for question in range(num_questions):
        scores.append([[0.9, 0.8], [0.95, 0.7], [0.2, 0.1]])
        for number, outcome in enumerate((1.0, 0.0, 0.0)):
            rows.append(
                {
                    "chunk": 0,
                    "question_index": question,
                    "solution_index": number,
                    "question": f"Question {question}? {HOSTILE[0]}",
                    "answer": "1",
                    "steps": [f"{HOSTILE[(question + number) % len(HOSTILE)]}\n", f"so {number}"],
                    "outcome_reward": outcome,
                    "prediction": "1" if outcome else HOSTILE[1],
                    "finished": True,
                    "num_tokens": 4,
                    "prefix_rewards": [[1.0, 0.0]],
                    "question_rewards": None,
                    "unusable": None,
                    "sampler": {},
                }
            )
    (samples / "rollouts-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A name is anybody's too, and may be an absolute path.
    models = {"/home/someone/erprm": scores, HOSTILE[1]: [[[0.5, 0.5]] * 3 for _ in scores]}
    (samples / "step_scores.json").write_text(json.dumps(models))
    (folder / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]})
    )
    return folder


class Reading(HTMLParser):
    """The tags of a page, and the text of its data."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.data, self._in_data = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_data = tag == "script" and ("id", "data") in attrs

    def handle_data(self, data):
        self.data += data if self._in_data else ""


def test_a_models_text_is_data_and_nothing_is_loaded(tmp_path):
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
    assert question["scores"][2][0] == [0.5, 1]  # labels: the mean of its two continuations, and its outcome


def test_two_pages_of_a_folder_are_equal_and_each_id_is_there_once(tmp_path):
    run = write_run(tmp_path / "run")
    first, second = (write_report(run, tmp_path / name, eta=0.0).read_bytes() for name in ("1.html", "2.html"))
    assert first == second
    ids = [attrs["id"] for _, attrs in Reading(first.decode()).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    figures = set(re.findall(r'<svg[^>]* aria-label="([^"]*)"', first.decode()))
    assert len(figures) > 4 and {name.split("-")[0] for name in ids} >= {"f0", "f1", "f2"}


def test_whole_questions_are_left_out_and_counted(tmp_path):
    page = write_report(write_run(tmp_path, num_questions=10), tmp_path / "there" / "page.html", max_solutions=13)
    (collection,) = json.loads(Reading(page.read_text(encoding="utf-8")).data)["collections"]
    assert [question["index"] for question in collection["questions"]] == [0, 2, 5, 7]
    assert (collection["numQuestions"], collection["numSolutions"]) == (10, 30)


def test_what_cannot_be_shown_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a run's folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nothing to show.*the run's output_dir"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="aggregation: got 'max'"):
        write_report(tmp_path, aggregation="max")
    run = write_run(tmp_path / "run")
    (run / "best_of_n.json").write_text("{ cut")
    (run / "samples" / "step_scores.json").write_text(json.dumps({"one": [[[0.5]]]}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "best_of_n.json: damaged, left out." in page
    assert "step_scores.json: left out, for no solutions in the folder fit these scores." in page


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
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())


def shown(browser, selector):
    return [one for one in browser.find_elements("css selector", selector) if one.is_displayed()]


def overall(browser):
    return [one.text.split()[-1] for one in shown(browser, ".solution .overall")]


def choose(browser, name, text):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", name)).select_by_visible_text(text)


@pytest.mark.slow("starts a browser")
def test_in_a_browser(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, write_report(write_run(tmp_path / "run"), eta=0.0))
    assert len(shown(browser, ".solution")) == 6
    assert overall(browser)[:3] == ["0.800", "0.700", "0.100"]  # sorted by score
    texts = [one.text for one in shown(browser, ".step span")]
    assert HOSTILE[0] in texts and HOSTILE[1] in texts and HOSTILE[2] in texts

    browser.find_element("id", "disagree").click()
    assert overall(browser) == ["0.700", "0.700"]
    assert all("scored high" in one.text for one in shown(browser, ".solution"))
    browser.find_element("id", "disagree").click()
    choose(browser, "graded", "right")
    assert len(shown(browser, ".solution")) == 2
    choose(browser, "graded", "right or wrong")
    choose(browser, "by", "product")
    assert overall(browser)[0] == "0.720"
    choose(browser, "source", LABELS)
    assert shown(browser, ".step b")[0].text == "0.50"

    first = shown(browser, ".step")[0]
    first.send_keys(Keys.NULL)  # the keyboard's way: focus, then arrows
    assert "2 continuations" in shown(browser, "#detail")[0].text and "1 0" in shown(browser, "#detail")[0].text
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert "Reward of the whole solution: 1" in shown(browser, "#detail")[0].text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not shown(browser, "#detail")
    browser.find_element("id", "search").send_keys("so 2")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda _: len(shown(browser, ".solution")) == 2)
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
def test_a_thousand_solutions(browser, tmp_path):
    """A page shows a part at a time: the document stays small, and every filter sees all of them."""
    open_page(browser, write_report(write_run(tmp_path / "run", num_questions=333)))
    assert len(shown(browser, ".solution")) == 48
    assert "999 solutions of 333 questions." in browser.find_element("id", "status").text
    browser.find_element("id", "disagree").click()
    assert "333 solutions of 333 questions." in browser.find_element("id", "status").text
    shown(browser, ".pager .next")[0].click()
    assert "Page 2 of" in shown(browser, ".pager .place")[0].text
    assert len(browser.find_elements("css selector", ".solution")) <= 48

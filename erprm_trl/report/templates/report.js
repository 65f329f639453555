"use strict";
// Whatever a model wrote reaches the page by textContent alone.
(() => {
  const SOLUTIONS_A_PAGE = 48;
  const SOLUTIONS_AT_FIRST = 32; // of one question
  const find = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const known = (value) => value !== null && value !== undefined;
  const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : "–");
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  const showFigures = (by) => {
    for (const figure of document.querySelectorAll("[data-by]")) figure.hidden = figure.dataset.by !== by;
    for (const select of document.querySelectorAll(".aggregation")) select.value = by;
  };
  const holder = find("data");
  const data = holder && JSON.parse(holder.textContent);
  document.addEventListener("change", (event) => {
    if (!event.target.classList.contains("aggregation")) return;
    showFigures(event.target.value);
    if (data) refresh();
  });
  if (!data) return;

  const state = { page: 0, pages: [], matched: [], detail: null, pinned: false };
  const collection = () => data.collections[Number(find("collection").value)];
  const isRight = (solution) => (known(solution.outcome) ? solution.outcome > 0.5 : null);

  // Which solutions

  function settings() {
    const threshold = parseFloat(find("threshold").value);
    return {
      source: Number(find("source").value || -1),
      by: find("by").value,
      graded: find("graded").value,
      disagree: find("disagree").checked,
      threshold: Number.isFinite(threshold) ? threshold : 0.5,
      words: find("search").value.trim().toLowerCase(),
    };
  }

  function textOf(question, solution) {
    solution.text ??= [question.question, question.answer ?? "", solution.prediction ?? "", ...solution.steps].join("\n").toLowerCase();
    return solution.text;
  }

  // A solution with its score and place among those of its question.
  function ranked(question, chosen) {
    const scores = chosen.source < 0 ? null : question.aggregates[chosen.source][chosen.by];
    const entries = question.solutions.map((solution, index) => {
      const score = scores ? scores[index] : null;
      const right = isRight(solution);
      const disagrees = known(score) && right !== null && (score >= chosen.threshold) !== right;
      return { solution, index, score, right, disagrees };
    });
    entries.sort((a, b) => (b.score ?? -1) - (a.score ?? -1) || a.index - b.index);
    entries.forEach((entry, place) => { entry.rank = place + 1; });
    return entries;
  }

  function matching(question, chosen) {
    return ranked(question, chosen).filter((entry) =>
      (chosen.graded === "all" || entry.right === (chosen.graded === "right")) &&
      (!chosen.disagree || entry.disagrees) &&
      (!chosen.words || textOf(question, entry.solution).includes(chosen.words)));
  }

  function refresh() {
    const chosen = settings();
    const matched = [];
    for (const question of collection().questions) {
      const entries = matching(question, chosen);
      if (entries.length) matched.push({ question, entries });
    }
    state.pages = [];
    let room = 0;
    for (const one of matched) {
      const size = Math.min(one.entries.length, SOLUTIONS_AT_FIRST);
      if (size > room || !state.pages.length) {
        state.pages.push([]);
        room = SOLUTIONS_A_PAGE;
      }
      state.pages[state.pages.length - 1].push(one);
      room -= size;
    }
    state.matched = matched;
    state.chosen = chosen;
    showPage(0);
  }

  // What is shown

  function showPage(page) {
    state.page = page;
    hideDetail();
    const results = find("results");
    results.replaceChildren(...(state.pages[page] ?? []).map((one) => questionOf(one)));
    const all = collection();
    const held = all.questions.reduce((sum, question) => sum + question.solutions.length, 0);
    const found = state.matched.reduce((sum, one) => sum + one.entries.length, 0);
    const part = held < all.numSolutions ? ` In this file: ${held.toLocaleString("en")} of the ${all.numSolutions.toLocaleString("en")} solutions of ${all.name}, whole questions spread evenly over them.` : "";
    find("status").textContent = (found ? `${count(found, "solution")} of ${count(state.matched.length, "question")}.` : "No solution is like this.") + part;
    for (const pager of document.querySelectorAll(".pager")) {
      pager.hidden = state.pages.length < 2;
      pager.querySelector(".previous").disabled = page === 0;
      pager.querySelector(".next").disabled = page + 1 >= state.pages.length;
      pager.querySelector(".place").textContent = `Page ${page + 1} of ${state.pages.length}`;
    }
  }

  function questionOf({ question, entries }) {
    const article = make("article", "question");
    const header = make("header");
    header.append(make("h3", "", `Question ${question.index + 1}`), make("p", "asked", question.question));
    const facts = [];
    if (known(question.answer)) facts.push(`Answer: ${question.answer}`);
    const graded = question.solutions.filter((solution) => known(solution.outcome));
    if (graded.length) facts.push(`${graded.filter(isRight).length} of ${count(graded.length, "graded solution")} right`);
    if (entries.length < question.solutions.length) facts.push(`${entries.length} shown`);
    if (question.rewards.length) facts.push(`rewards without any step: ${question.rewards.join(" ")}`);
    header.append(make("p", "facts-line", facts.join(" · ")));
    const cards = make("div", "solutions");
    const add = (some) => cards.append(...some.map((entry) => solutionOf(question, entry)));
    add(entries.slice(0, SOLUTIONS_AT_FIRST));
    article.append(header, cards);
    const rest = entries.slice(SOLUTIONS_AT_FIRST);
    if (rest.length) {
      const more = make("button", "more", `Show ${count(rest.length, "more solution")}`);
      more.type = "button";
      more.addEventListener("click", () => { more.remove(); add(rest); });
      article.append(more);
    }
    return article;
  }

  function solutionOf(question, entry) {
    const { solution, right } = entry;
    const card = make("div", "solution");
    const title = make("h4");
    if (state.chosen.source >= 0) {
      title.append(make("span", "rank", "score"), make("span", "overall", known(entry.score) ? entry.score.toFixed(3) : "none"));
      title.append(make("span", "rank", `${entry.rank} of ${question.solutions.length}`));
    }
    const isPlain = right === null || solution.outcome === 0 || solution.outcome === 1;
    const reward = isPlain ? "" : ` (${solution.outcome})`;
    if (right === null) title.append(make("span", "badge", "not graded"));
    else title.append(make("span", `badge ${right ? "right" : "wrong"}`, (right ? "✓ right" : "✗ wrong") + reward));
    if (entry.disagrees) title.append(make("span", "badge disagree", right ? "scored low" : "scored high"));
    if (solution.finished === false) title.append(make("span", "badge", "unfinished"));
    if (solution.unusable) title.append(make("span", "badge", solution.unusable));
    const list = make("ol", "steps");
    list.setAttribute("aria-label", `Steps of solution ${solution.index + 1}`);
    const scores = state.chosen.source < 0 ? [] : question.scores[state.chosen.source][entry.index];
    solution.steps.forEach((step, number) => list.append(stepOf(question, entry, number, step, scores[number])));
    card.append(title, list);
    if (known(solution.prediction)) card.append(make("p", "predicted", `Answer found: ${solution.prediction}`));
    return card;
  }

  function stepOf(question, entry, number, text, score) {
    const item = make("li");
    const step = make("div", "step");
    step.setAttribute("role", "button");
    step.setAttribute("aria-expanded", "false");
    step.tabIndex = number ? -1 : 0; // arrow keys reach the others
    if (known(score)) {
      const away = Math.min(1, Math.abs(score - 0.5) * 2);
      step.classList.add(score < 0.5 ? "low" : "high");
      step.style.setProperty("--mix", `${Math.round(away * 100)}%`);
    }
    step.append(make("b", "", fixed(score, 2)), make("span", "", text));
    step.detailOf = () => detailOf(question, entry, number);
    item.append(step);
    return item;
  }

  // Scores by every model and raw rewards, at a step

  function detailOf(question, { solution, index }, number) {
    const detail = make("div", "detail");
    detail.id = "detail";
    detail.append(make("p", "", `Step ${number + 1} of ${solution.steps.length}`));
    const sources = collection().sources;
    if (sources.length) {
      const body = make("tbody");
      sources.forEach((source, place) => {
        const row = make("tr", place === state.chosen.source ? "chosen" : "");
        const head = make("th", "", source.name);
        head.scope = "row";
        row.append(head, make("td", "", fixed(question.scores[place][index][number], 3)));
        body.append(row);
      });
      const table = make("table");
      table.append(body);
      detail.append(table);
    }
    const isLast = number === solution.steps.length - 1;
    const rewards = solution.rewards[number];
    if (isLast && known(solution.outcome)) {
      detail.append(make("p", "", `Reward of the whole solution: ${solution.outcome}`));
    } else if (rewards && rewards.length) {
      const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
      detail.append(make("p", "", `Rewards of ${count(rewards.length, "continuation")} from here, mean ${mean.toFixed(3)}:`));
      detail.append(make("p", "raw", rewards.join(" ")));
      const generated = solution.generated && solution.generated[number];
      if (known(generated) && generated < rewards.length) {
        detail.append(make("p", "", `${generated} sampled here, ${rewards.length - generated} shared with other prefixes.`));
      }
    } else {
      detail.append(make("p", "", "No continuations from here, so no raw rewards."));
    }
    return detail;
  }

  function showDetail(step) {
    if (state.detail === step) return;
    hideDetail();
    step.parentElement.append(step.detailOf());
    step.setAttribute("aria-expanded", "true");
    step.setAttribute("aria-describedby", "detail");
    state.detail = step;
  }

  function hideDetail() {
    if (!state.detail) return;
    find("detail")?.remove();
    state.detail.setAttribute("aria-expanded", "false");
    state.detail.removeAttribute("aria-describedby");
    state.detail = null;
  }

  const results = find("results");
  const stepAt = (event) => event.target.closest(".steps li")?.firstElementChild;
  const focused = () => (document.activeElement?.classList.contains("step") ? document.activeElement : null);
  results.addEventListener("mouseover", (event) => {
    const step = stepAt(event);
    if (step) showDetail(step);
    else if (focused()) showDetail(focused());
    else hideDetail();
  });
  results.addEventListener("mouseleave", () => (focused() ? showDetail(focused()) : hideDetail()));
  results.addEventListener("focusin", (event) => { if (event.target.classList.contains("step")) showDetail(event.target); });
  results.addEventListener("focusout", hideDetail);
  results.addEventListener("click", (event) => {
    const step = event.target.closest(".step");
    if (step) { step.focus(); showDetail(step); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hideDetail();
    const step = focused();
    if (!step) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return state.detail === step ? hideDetail() : showDetail(step);
    }
    const steps = [...step.closest(".steps").querySelectorAll(".step")];
    const here = steps.indexOf(step);
    const target = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: steps.length - 1 }[event.key];
    if (target === undefined || !steps[target]) return;
    event.preventDefault();
    step.tabIndex = -1;
    steps[target].tabIndex = 0;
    steps[target].focus();
  });

  // The controls

  function showCollection() {
    const { sources, questions } = collection();
    find("source").replaceChildren(...sources.map((source, index) => {
      const option = make("option", "", source.name);
      option.value = String(index);
      return option;
    }));
    const isGraded = questions.some((question) => question.solutions.some((solution) => known(solution.outcome)));
    for (const id of ["source-label", "by-label", "key"]) find(id).hidden = !sources.length;
    find("graded-label").hidden = !isGraded;
    for (const id of ["disagree-label", "threshold-label"]) find(id).hidden = !sources.length || !isGraded;
    if (!isGraded) find("graded").value = "all";
    if (!isGraded || !sources.length) find("disagree").checked = false;
    refresh();
  }

  let waiting;
  find("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 150);
  });
  find("threshold").addEventListener("input", refresh);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").addEventListener("change", (event) => {
    if (event.target.id === "collection") showCollection();
    else if (["source", "graded", "disagree"].includes(event.target.id)) refresh();
  });
  for (const [name, by] of [["previous", -1], ["next", 1]]) {
    for (const button of document.querySelectorAll(`.pager .${name}`)) {
      button.addEventListener("click", () => {
        showPage(state.page + by);
        results.focus({ preventScroll: true });
        find("status").scrollIntoView({ block: "start" });
      });
    }
  }
  showFigures(data.aggregation);
  showCollection();
})();

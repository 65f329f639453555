"use strict";
// Text of a model becomes text nodes. Formulas are built element by element, from names that Python has checked.
(() => {
  const SOLUTIONS_PER_PAGE = 48;
  const SOLUTIONS_AT_FIRST = 32; // of one question
  const LONG_FORMULA = 18; // a formula with more characters may be wider than a phone
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

  // Text with formulas and code

  const MATHML = "http://www.w3.org/1998/Math/MathML";
  const partsOf = (text) => (Array.isArray(text) ? text : [text]);

  function plain(text) {
    return partsOf(text).map((part) => {
      if (typeof part === "string") return part;
      return part[0] === "math" ? data.formulas[part[1]].source : part[1];
    }).join("");
  }

  function math([name, attributes, ...children]) {
    const element = document.createElementNS(MATHML, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.map((child) => (typeof child === "string" ? child : math(child))));
    return element;
  }

  function shown(part) {
    if (typeof part === "string") return document.createTextNode(part);
    if (part[0] === "code") return make("code", part[1].includes("\n") ? "block" : "", part[1].replace(/\n$/, ""));
    const formula = data.formulas[part[1]];
    const holder = make("span", "formula");
    holder.title = formula.source;
    holder.append(math(formula.math));
    if (formula.math[1].display) holder.classList.add("block");
    else if (holder.textContent.length > LONG_FORMULA) holder.classList.add("long");
    return holder;
  }

  // Blocks stand on lines of their own, so line breaks around them would add empty lines.
  function fill(element, text) {
    const nodes = partsOf(text).map(shown);
    const isBlock = (node) => node?.classList?.contains("block");
    nodes.forEach((node, index) => {
      if (node.nodeType !== Node.TEXT_NODE) return;
      if (isBlock(nodes[index - 1])) node.data = node.data.replace(/^[ \t]*\n+/, "");
      if (isBlock(nodes[index + 1])) node.data = node.data.replace(/\n+[ \t]*$/, "");
    });
    element.append(...nodes);
    return element;
  }

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
    solution.text ??= [question.question, question.answer ?? "", solution.prediction ?? "", ...solution.steps].map(plain).join("\n").toLowerCase();
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
    for (const match of matched) {
      const size = Math.min(match.entries.length, SOLUTIONS_AT_FIRST);
      if (size > room || !state.pages.length) {
        state.pages.push([]);
        room = SOLUTIONS_PER_PAGE;
      }
      state.pages[state.pages.length - 1].push(match);
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
    results.replaceChildren(...(state.pages[page] ?? []).map((match) => questionOf(match)));
    const all = collection();
    const inFile = all.questions.reduce((sum, question) => sum + question.solutions.length, 0);
    const matches = state.matched.reduce((sum, match) => sum + match.entries.length, 0);
    const part = inFile < all.numSolutions ? ` This file has ${inFile.toLocaleString("en")} of the ${all.numSolutions.toLocaleString("en")} solutions of ${all.name}: whole questions, spread evenly.` : "";
    find("status").textContent = (matches ? `${count(matches, "solution")} of ${count(state.matched.length, "question")}.` : "No solution matches.") + part;
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
    header.append(make("h3", "", `Question ${question.index + 1}`), fill(make("p", "asked"), question.question));
    const facts = [];
    if (known(question.answer)) facts.push(`Answer: ${plain(question.answer)}`);
    const graded = question.solutions.filter((solution) => known(solution.outcome));
    if (graded.length) facts.push(`${graded.filter(isRight).length} of ${count(graded.length, "graded solution")} right`);
    if (entries.length < question.solutions.length) facts.push(`${entries.length} shown`);
    if (question.rewards.length) facts.push(`rewards of the question alone: ${question.rewards.join(" ")}`);
    header.append(make("p", "facts-line", facts.join(" · ")));
    const cards = make("div", "solutions");
    const add = (added) => cards.append(...added.map((entry) => solutionOf(question, entry)));
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
    const steps = (from, to) => solution.steps.slice(from, to).map((step, index) => stepOf(question, entry, from + index, step, scores[from + index]));
    const [from, to] = solution.fold ?? [0, 0];
    list.append(...steps(0, from));
    if (to > from) list.append(foldOf(solution, from, to, scores, () => steps(from, to)));
    list.append(...steps(to));
    card.append(title, list);
    if (known(solution.prediction)) card.append(fill(make("p", "predicted", "Extracted answer: "), solution.prediction));
    return card;
  }

  // Long reasoning is folded. Its steps are made when it is opened, or when the search may have matched them.
  function foldOf(solution, from, to, scores, steps) {
    const item = make("li", "fold");
    const details = make("details");
    const values = scores.slice(from, to).filter(known);
    const lowest = values.length ? `, lowest score ${Math.min(...values).toFixed(2)}` : "";
    const what = solution.thinking >= to ? "Thinking" : "More steps";
    details.append(make("summary", "", `${what}: ${count(to - from, "step")}${lowest}`));
    const list = make("ol", "steps");
    details.append(list);
    const open = () => { if (details.open && !list.children.length) list.append(...steps()); };
    details.addEventListener("toggle", open);
    details.open = state.chosen.words !== "" && solution.steps.slice(from, to).some((step) => plain(step).toLowerCase().includes(state.chosen.words));
    open();
    item.append(details);
    return item;
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
    step.append(make("b", "", fixed(score, 2)), fill(make("span", "text"), text));
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
        detail.append(make("p", "", `${generated} sampled from here, ${rewards.length - generated} shared with other prefixes.`));
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
  const stepAt = (event) => event.target.closest(".steps li:not(.fold)")?.firstElementChild;
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
    const steps = [...step.closest(".solution").querySelectorAll(".step")].filter((other) => other.checkVisibility());
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
    if (sources.length) find("source").value = String(collection().first);
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

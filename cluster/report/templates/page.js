"use strict";
// The read-out under the pointer, filters and sliders of pictures, and, on the live page, new sections as they come.
const shown = (value) => (Math.abs(value) >= 1000 || value === 0 ? value.toFixed(0) : Number(value.toPrecision(3)).toString());

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

function readOut(event) {
  const svg = event.target.closest("svg.chart");
  if (!svg) return hideReadOut();
  const chart = JSON.parse(svg.dataset.chart), box = svg.getBoundingClientRect();
  const left = chart.left / svg.viewBox.baseVal.width, right = chart.right / svg.viewBox.baseVal.width;
  const share = Math.min(1, Math.max(0, ((event.clientX - box.left) / box.width - left) / (right - left)));
  const x = nearest(chart.lines.map((line) => nearest(line.points, chart.low + share * (chart.high - chart.low))).sort((a, b) => a[0] - b[0]), chart.low + share * (chart.high - chart.low))[0];
  const cursor = svg.querySelector(".cursor"), at = chart.left + (x - chart.low) / (chart.high - chart.low) * (chart.right - chart.left);
  hideReadOut();
  cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.removeAttribute("hidden");
  const note = document.createElement("div");
  note.className = "readout";
  note.append(`step ${x}`);
  for (const line of chart.lines) {
    const point = nearest(line.points, x), row = document.createElement("div"), key = document.createElement("i");
    key.className = `key c${line.color}`;
    row.append(key, `${line.label || chart.unit} `, Object.assign(document.createElement("b"), { textContent: shown(point[1]) }));
    if (point[0] !== x) row.append(` (step ${point[0]})`);
    note.append(row);
  }
  const figure = svg.closest("figure"), frame = figure.getBoundingClientRect();
  figure.append(note);
  const place = event.clientX - frame.left;
  note.style.left = `${Math.max(4, place > frame.width / 2 ? place - note.offsetWidth - 14 : place + 14)}px`;
  note.style.top = `${box.top - frame.top + 8}px`;
}
function hideReadOut() {
  document.querySelectorAll(".readout").forEach((note) => note.remove());
  document.querySelectorAll(".cursor:not([hidden])").forEach((line) => line.setAttribute("hidden", ""));
}
document.addEventListener("pointermove", readOut);
document.addEventListener("pointerdown", readOut);
document.addEventListener("click", (event) => event.target.closest(".why")?.classList.toggle("open"));

// Filters: a card stays when its texts hold all words and its score (of the chosen reward) is at least the least one.
function filter() {
  const box = document.getElementById("filter");
  if (!box) return;
  const words = box.querySelector("[name=words]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const reward = box.querySelector("[name=reward]").value, least = Number(box.querySelector("[name=least]").value);
  box.querySelector("output").textContent = least > 0 ? shown(least) : "any";
  let count = 0;
  const cards = document.querySelectorAll(".samples [data-text]");
  for (const card of cards) {
    const score = JSON.parse(card.dataset.scores)[reward];
    const fits = words.every((word) => card.dataset.text.includes(word)) && (least <= 0 || (score != null && score >= least));
    card.hidden = !fits;
    if (fits && !card.closest("[data-step][hidden]")) count += 1;
  }
  box.querySelector(".count").textContent = words.length || least > 0 ? `${count} pictures` : "";
}

// Sliders through the steps of which pictures were kept.
async function show(strip) {
  const slider = strip.querySelector("[type=range]"), steps = JSON.parse(slider.dataset.steps), step = steps[slider.value];
  slider.closest("label").querySelector("b").textContent = `step ${step}`;
  let page = strip.querySelector(`[data-step="${step}"]`);
  if (!page && document.body.dataset.live) {
    const answer = await fetch(`samples?run=${strip.dataset.run}&step=${step}`);
    if (!answer.ok) return;
    page = document.createElement("div");
    page.dataset.step = step;
    page.innerHTML = await answer.text();
    strip.append(page);
    if (steps[slider.value] !== step) { page.hidden = true; return; }
  }
  strip.querySelectorAll("[data-step]").forEach((other) => { other.hidden = other !== page; });
  filter();
}
document.addEventListener("input", (event) => {
  if (event.target.closest("#filter")) filter();
  const strip = event.target.closest(".strip");
  if (strip) show(strip);
});

// The live page: sections that have changed come anew; what the reader has chosen in them stays.
const digests = {};
function keep(section) {
  const chosen = [...section.querySelectorAll("input, select")].map((field) => [field.name, field.closest("[data-run]")?.dataset.run, field.value, field.value === field.max]);
  const open = [...section.querySelectorAll("details")].map((details) => details.open);
  return () => {
    for (const field of section.querySelectorAll("input, select")) {
      const before = chosen.find(([name, run]) => name === field.name && run === field.closest("[data-run]")?.dataset.run);
      if (before && !(field.type === "range" && field.dataset.steps && before[3])) field.value = before[2];
    }
    section.querySelectorAll("details").forEach((details, index) => { details.open = open[index] ?? details.open; });
    section.querySelectorAll(".strip").forEach(show);
    filter();
  };
}
async function refresh() {
  const lost = document.getElementById("lost");
  try {
    const known = encodeURIComponent(JSON.stringify(digests));
    const answer = await fetch(`sections?known=${known}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    for (const [name, part] of Object.entries(await answer.json())) {
      const section = document.getElementById(name), first = !(name in digests);
      digests[name] = part.digest;
      if (!section || (first && section.dataset.digest === part.digest)) continue;
      if (section.contains(document.activeElement) && document.activeElement.tagName === "SELECT") { delete digests[name]; continue; }
      const restore = keep(section), focused = section.contains(document.activeElement) ? document.activeElement.name : null;
      section.innerHTML = part.html;
      restore();
      if (focused) section.querySelector(`[name="${focused}"]`)?.focus();
    }
    document.body.dataset.refreshed = Number(document.body.dataset.refreshed || 0) + 1;
    lost.hidden = true;
  } catch (error) {
    const reason = error instanceof TypeError ? "The page's server does not answer" : error.message;
    lost.textContent = `${reason}; what is shown may be old.`;
    lost.hidden = false;
  }
}
if (document.body.dataset.live) {
  document.querySelectorAll("section[data-digest]").forEach((section) => { digests[section.id] = section.dataset.digest; });
  setInterval(refresh, Number(document.body.dataset.live));
}
document.querySelectorAll(".strip").forEach(show);

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  return node;
};
const modeName = { image: "image by image", grid: "in a grid", pair: "pairs" };

function startPage() {
  $("title").textContent = "Labelling";
  $("bar").hidden = true;
  const main = $("main");
  main.append(make("p", "Type your rater id (small letters, digits, - and _) and choose what to rate."));
  const input = make("input", undefined, { id: "rater", maxlength: 32, autofocus: "", "aria-label": "rater id" });
  main.append(input);
  const row = make("div", undefined, { id: "answers" });
  for (const mode of data.modes) {
    const button = make("button", "Rate " + modeName[mode]);
    button.onclick = () => {
      const rater = input.value.trim().toLowerCase();
      if (!/^[a-z0-9][a-z0-9_-]{0,31}$/.test(rater)) { input.focus(); $("state").textContent = "no rater id"; return; }
      location.href = data.root + "rate/" + rater + "/" + mode;
    };
    row.append(button);
  }
  main.append(row);
  const table = make("table"), head = make("tr");
  for (const name of ["rater", "what", "done", "of"]) head.append(make("th", name));
  table.append(head);
  for (const p of data.progress) {
    const line = make("tr"), cell = make("td");
    cell.append(make("a", p.rater, { href: data.root + "rate/" + p.rater + "/" + p.mode }));
    line.append(cell, make("td", modeName[p.mode]), make("td", p.done), make("td", p.total));
    table.append(line);
  }
  main.append(table);
  $("help").textContent = "The rater “" + data.consensus + "” sees only what the others disagree on.";
}

// -- rating ----------------------------------------------------------------------------------------------------------

let items = [], at = 0, sending = false, history = [];
const address = data.root + "items/" + data.rater + "/" + (data.mode === "grid" ? "image" : data.mode);
const queueName = "queue:" + address;  // answers that the server has not acknowledged outlive the page
const queue = () => JSON.parse(localStorage.getItem(queueName) || "[]");
const saveQueue = q => localStorage.setItem(queueName, JSON.stringify(q));

function ratePage() {
  $("title").textContent = data.rater + ", " + modeName[data.mode];
  const main = $("main");
  main.append(make("div", undefined, { id: "images" }), make("div", undefined, { id: "said" }));
  const row = make("div", undefined, { id: "answers" });
  for (const button of answerButtons()) {
    button.onclick = () => give(button.dataset.answer);
    row.append(button);
  }
  main.append(row, make("textarea", undefined, { id: "note", maxlength: 2000, placeholder: "note (n)", "aria-label": "note" }));
  help([["1-" + (data.answers.length - (data.mode === "image")), "answer"], ["← →", "move"], ["u", "undo"], ["z", "zoom"],
        ["n", "note, Esc to leave"], ["space", "skip"]]);
  document.addEventListener("keydown", onKey);
  start();
}

function help(keys) {
  for (const [key, what] of keys) {
    const hint = make("span"); hint.append(make("kbd", key), " " + what); $("help").append(hint);
  }
  $("help").append(make("a", "overview", { href: data.root }));
}

// The answers with their keys: digits from 1, and 0 for the last of an image's, which is the uncertain one.
const keyOf = i => data.mode !== "pair" && i === data.answers.length - 1 ? 0 : i + 1;
const answerOf = key => data.answers.find((_, i) => String(keyOf(i)) === key);

function answerButtons() {
  return data.answers.map((answer, i) => {
    const button = make("button", undefined, { "data-answer": answer });
    button.append(make("kbd", keyOf(i)), " " + answer);
    return button;
  });
}

function start() {
  load(true);
  setInterval(send, 2000);
  window.addEventListener("focus", () => { if (document.activeElement.tagName !== "TEXTAREA") load(false); });
}

async function load(jump) {
  try {
    items = await (await fetch(address)).json();
  } catch (e) { status("no server; trying again", true); setTimeout(() => load(jump), 2000); return; }
  for (const q of queue()) {
    const item = items.find(i => i.item === q.item);
    if (item) { item.answer = q.answer; item.note = q.note; item.seen = Math.max(item.seen, q.seen + 1); }
  }
  if (jump) at = data.mode === "grid" ? pageOf(items.findIndex(i => i.answer === null)) : Math.max(0, unanswered(-1));
  show();
  send();
}

// The first item after this one, round the end, that has no answer; -1: there is none but this one.
function unanswered(after) {
  for (let k = 1; k <= items.length; k++) {
    const i = (after + k) % items.length;
    if (i !== after && items[i].answer === null) return i;
  }
  return -1;
}

function progress() {
  const done = items.filter(i => i.answer !== null).length;
  $("bar").max = items.length || 1;
  $("bar").value = done;
  return items.length ? " / " + items.length + ", " + done + " answered" : "nothing to rate";
}

function show() {
  if (data.mode === "grid") { showGrid(); return; }
  const item = items[at];
  $("place").textContent = (item ? at + 1 : "") + progress();
  if (!item) return;
  const images = $("images");
  images.className = (data.mode === "pair" ? "pair" : "") + (images.classList.contains("zoom") ? " zoom" : "");
  images.replaceChildren(...item.images.map((key, i) => {
    const figure = make("figure");
    figure.append(make("img", undefined, { src: data.root + "image/" + key, alt: data.mode === "pair" ? ["left", "right"][i] : "image" }));
    if (data.mode === "pair") figure.append(make("figcaption", ["left", "right"][i]));
    return figure;
  }));
  $("said").textContent = item.said.length ? "The raters said: " + item.said.join("; ") : "";
  $("note").value = item.note;
  for (const button of $("answers").children) {
    const chosen = button.dataset.answer === item.answer;
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
  }
  const next = items[at + 1];
  if (next) for (const key of next.images) new Image().src = data.root + "image/" + key;
}

function give(answer, advance = true) {
  const item = items[at];
  if (!item) return;
  put(item, answer, $("note").value);
  $("note").blur();
  const next = unanswered(at);
  if (advance) at = next >= 0 ? next : Math.min(at + 1, items.length - 1);
  show();
}

function put(item, answer, note) {
  item.note = note;
  item.answer = answer;
  const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  saveQueue([...queue(), { id, item: item.item, answer, note, seen: item.seen }]);
  item.seen += 1;
  if (answer !== null) history.push(item.item);
  send();
}

function skip() {
  const next = unanswered(at);
  if (next < 0) { status("no other is without an answer"); return; }
  if (next < at) status("skipped ones again: " + items.filter(i => i.answer === null).length + " without an answer");
  at = next;
  show();
}

function undo() {
  const last = history.pop();
  if (last === undefined) { status("nothing to undo here"); return; }
  const where = items.findIndex(i => i.item === last);
  if (data.mode === "grid") { at = pageOf(where); put(items[where], null, items[where].note); show(); return; }
  at = where;
  show();
  give(null, false);
}

async function send() {
  if (sending) return;
  sending = true;
  try {
    while (queue().length) {
      const first = queue()[0];
      status("saving");
      const response = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(first) });
      if (response.status === 409) {
        saveQueue(queue().filter(q => q.item !== first.item));
        await load(false);
        const where = items.findIndex(i => i.item === first.item);
        at = data.mode === "grid" ? pageOf(where) : Math.max(0, where);
        show();
        status("answered in another tab: shown as it is there", true);
        sending = false;
        return;
      }
      if (!response.ok) throw new Error(response.status);
      saveQueue(queue().filter(q => q.id !== first.id));
      if ($("state").dataset.down) { delete $("state").dataset.down; show(); }  // images that did not load, too
    }
    if (!$("state").classList.contains("bad") || $("state").textContent.startsWith("not saved")) status("saved");
  } catch (e) {
    $("state").dataset.down = "1";
    status("not saved (" + queue().length + "); trying again", true);
  }
  sending = false;
}

function status(text, bad = false) { $("state").textContent = text; $("state").classList.toggle("bad", bad); }

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "TEXTAREA") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const answer = answerOf(event.key);
  if (answer !== undefined) give(answer);
  else if (event.key === "ArrowRight" && at < items.length - 1) { at += 1; show(); }
  else if (event.key === "ArrowLeft" && at > 0) { at -= 1; show(); }
  else if (event.key === "u") undo();
  else if (event.key === "z") { $("images").classList.toggle("zoom"); }
  else if (event.key === "n") { $("note").focus(); }
  else if (event.key === " ") skip();
  else return;
  event.preventDefault();
}

// -- the grid: click what is not valid, Enter for the rest ----------------------------------------------------------------

const PER_PAGE = 48;
const pageOf = i => Math.max(0, i - i % PER_PAGE);
let brush = null;  // the answer that a click gives

function gridPage() {
  $("title").textContent = data.rater + ", " + modeName[data.mode];
  const row = make("div", undefined, { id: "answers" });
  for (const button of answerButtons()) {
    button.onclick = () => { brush = button.dataset.answer; show(); };
    row.append(button);
  }
  const rest = make("button", undefined, { id: "rest" });
  rest.append(make("kbd", "Enter"), " all others on this page: " + data.valid);
  rest.onclick = giveRest;
  $("main").append(make("div", undefined, { id: "thumbs" }), row, rest);
  brush = data.answers.find(a => data.verdicts[a] === "hallucinated");
  help([["click", "the chosen answer; again: " + data.valid], ["1-" + (data.answers.length - 1) + " 0", "choose the answer"],
        ["Enter", "all others are " + data.valid], ["space", "skip the page"], ["← →", "move"], ["u", "undo"], ["z", "zoom"]]);
  document.addEventListener("keydown", onGridKey);
  start();
}

const onPage = () => items.slice(at, at + PER_PAGE);

function showGrid() {
  $("place").textContent = (items.length ? at + 1 + "-" + Math.min(at + PER_PAGE, items.length) : "") + progress();
  $("thumbs").replaceChildren(...onPage().map(item => {
    const thumb = make("button", undefined, { class: data.verdicts[item.answer] || "", title: item.answer || "no answer" });
    thumb.append(make("img", undefined, { src: data.root + "image/" + item.images[0], alt: item.answer || "no answer" }));
    if (item.answer && item.answer !== data.valid) thumb.append(make("span", item.answer));
    thumb.onclick = () => { put(item, item.answer === brush ? data.valid : brush, item.note); thumb.blur(); show(); };
    return thumb;
  }));
  for (const button of $("answers").children) {
    button.classList.toggle("chosen", button.dataset.answer === brush);
    button.setAttribute("aria-pressed", button.dataset.answer === brush);
  }
}

function giveRest() {
  for (const item of onPage()) if (item.answer === null) put(item, data.valid, item.note);
  $("rest").blur();
  turn();
}

// To the next page that has an image without an answer.
function turn() {
  const next = unanswered(Math.min(at + PER_PAGE, items.length) - 1);
  if (next >= 0) at = pageOf(next); else status("all are answered");
  show();
}

function onGridKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const answer = answerOf(event.key);
  if (answer !== undefined) { brush = answer; show(); }
  else if (event.key === "Enter" && event.target.tagName !== "BUTTON") giveRest();
  else if (event.key === " " && event.target.tagName !== "BUTTON") turn();
  else if (event.key === "ArrowRight" && at + PER_PAGE < items.length) { at += PER_PAGE; show(); }
  else if (event.key === "ArrowLeft" && at > 0) { at -= PER_PAGE; show(); }
  else if (event.key === "u") undo();
  else if (event.key === "z") $("thumbs").style.setProperty("--thumb", $("thumbs").style.getPropertyValue("--thumb") ? "" : "192px");
  else return;
  event.preventDefault();
}

if (data.page === "start") startPage(); else if (data.mode === "grid") gridPage(); else ratePage();

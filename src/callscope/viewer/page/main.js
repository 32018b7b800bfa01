// The page: tabs, search, theme, keyboard, and which view is shown.
import { ask, embedded } from "./api.js";
import { element, visible } from "./dom.js";
import { showDetails } from "./details.js";
import { crashView } from "./crash.js";
import { flameView } from "./flame.js";
import { functionsView } from "./functions.js";
import { graphView } from "./graph.js";
import { modulesView } from "./modules.js";
import { onState, go, state } from "./state.js";
import { stacksView } from "./stacks.js";
import { summaryView } from "./summary.js";
import { timelineView } from "./timeline.js";

const VIEWS = {
  timeline: ["Timeline", timelineView],
  flame: ["Flame graph", flameView],
  functions: ["Functions", functionsView],
  graph: ["Call graph", graphView],
  modules: ["Modules", modulesView],
  stacks: ["Stacks", stacksView],
  crash: ["Crash", crashView],
  info: ["Trace", summaryView],
};

const KEYS = [
  ["1 - 8", "timeline, flame graph, functions, call graph, modules, stacks, crash, trace"],
  ["/", "search: filters functions, marks them in timeline and flame graph"],
  ["W S, + -, wheel", "zoom the timeline at the pointer"],
  ["A D, ← →, drag", "move the timeline in time"],
  ["↑ ↓, Shift+wheel, drag", "move the timeline through threads and depths"],
  ["0", "all calls"],
  ["click, double click", "a call's details; zoom to it"],
  ["F", "zoom to the selected call"],
  ["P", "select the caller of the selected call"],
  ["Enter", "the function of the selected call in the call graph"],
  ["O", "flame graph: by name, or the heaviest first"],
  ["Backspace", "flame graph: out of the path that is zoomed to"],
  ["T", "light or dark"],
  ["Esc", "close details, empty the search"],
];

const viewElement = document.getElementById("view");
const searchElement = document.getElementById("search");
const noticeElement = document.getElementById("notice");
const helpElement = document.getElementById("help");
const context = { summary: null, dark: false, notice: showNotice };
let current = null;
let shownView = null;

function showNotice(text) {
  noticeElement.textContent = text || "";
  noticeElement.hidden = !text;
}

function setTheme(dark) {
  context.dark = dark;
  document.documentElement.classList.toggle("dark", dark);
  current?.refresh?.();
}

function toggleTheme() {
  setTheme(!context.dark);
  try {
    localStorage.setItem("callscope-theme", context.dark ? "dark" : "light");
  } catch { /* without storage the choice lasts as long as the page */ }
}

function firstTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("callscope-theme");
  } catch { /* the system decides */ }
  setTheme(chosen ? chosen === "dark" : system.matches);
  system.addEventListener("change", () => { if (!chosen) setTheme(system.matches); });
}

function show(before) {
  const name = state.view in VIEWS ? state.view : "timeline";
  for (const tab of document.querySelectorAll("#tabs button")) {
    tab.setAttribute("aria-selected", String(tab.dataset.view === name));
  }
  if (searchElement.value !== (state.search || "")) searchElement.value = state.search || "";
  if (shownView !== name) {
    current?.close?.();
    showNotice("");
    viewElement.replaceChildren();
    shownView = name;
    current = VIEWS[name][1](viewElement, context);
  } else {
    current?.update?.(before);
  }
  if (!before || before.call !== state.call) showDetails(context);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (helpElement.open) return;
    searchElement.blur();
    go({ call: null, search: null });
    return;
  }
  if (event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement || helpElement.open) return;
  const names = Object.keys(VIEWS);
  if (event.key >= "1" && event.key <= String(names.length)) go({ view: names[Number(event.key) - 1] });
  else if (event.key === "/") searchElement.focus();
  else if (event.key === "?") helpElement.showModal();
  else if (event.key === "t" || event.key === "T") toggleTheme();
  else if (!current?.key?.(event)) return;
  event.preventDefault();
}

function makeHelp() {
  const rows = KEYS.map(([keys, text]) => element("tr", {}, element("td", {}, element("kbd", {}, keys)),
    element("td", {}, text)));
  helpElement.append(element("h2", {}, "Keyboard and mouse"), element("table", {}, ...rows),
    element("p", {}, element("button", { onclick: () => helpElement.close(), className: "on" }, "Close")));
}

async function start() {
  firstTheme();
  makeHelp();
  for (const [name, [title]] of Object.entries(VIEWS)) {
    const tab = element("button", { onclick: () => go({ view: name }), role: "tab" }, title);
    tab.dataset.view = name;
    document.getElementById("tabs").append(tab);
  }
  document.getElementById("theme").onclick = toggleTheme;
  document.getElementById("help-button").onclick = () => helpElement.showModal();
  searchElement.oninput = () => go({ search: searchElement.value }, true);
  searchElement.onkeydown = (event) => { if (event.key === "Enter") searchElement.blur(); };
  addEventListener("keydown", onKey);
  try {
    context.summary = await ask("summary");
  } catch (error) {
    showNotice(error.message);
    return;
  }
  document.title = `${visible(context.summary.name)} - callscope`;
  document.getElementById("trace-name").textContent = visible(context.summary.name) + (embedded ? " (exported)" : "") +
    (context.summary.coarse ? " (coarse clock)" : "");
  document.getElementById("trace-name").title = context.summary.coarse || "";
  onState(show);
  show(null);
}

start();

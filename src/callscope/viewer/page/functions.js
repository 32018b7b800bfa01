// Every function called: sorted, searched.
import { ask } from "./api.js";
import { count, duration, element, figure, label, tableRow, visible } from "./dom.js";
import { go, state } from "./state.js";

const PAGE = 200;
const COLUMNS = [["total", "Total"], ["self", "Self"], ["calls", "Calls"], ["average", "Average"], ["min", "Min"],
  ["max", "Max"], ["p99", "P99"], ["name", "Function"]];

/** The table of functions. */
export function functionsView(container, context) {
  const body = element("tbody");
  const titles = element("tr");
  const status = element("span", { className: "dim" });
  const more = element("button", { className: "on", onclick: () => load(true) }, "More");
  container.append(element("table", { id: "functions" }, element("thead", {}, titles), body),
    element("div", { className: "bar-row" }, status, more));
  let rows = [];
  let largest = { total_ns: 1, self_ns: 1, calls: 1 };
  let asked = 0;

  function paintTitles() {
    const sort = state.sort || "total";
    titles.replaceChildren(...COLUMNS.map(([name, title]) => {
      const mark = name === sort ? (state.reverse === "1" ? " ▴" : " ▾") : "";
      const act = () => go({ sort: name, reverse: name === sort && state.reverse !== "1" ? "1" : null });
      return element("th", name === "name" ? {} : { className: "number" }, element("button", { onclick: act }, title + mark));
    }));
  }

  function row(entry) {
    const name = visible(label(entry.function, entry.module, context.summary.own_module));
    const cells = [figure(duration(entry.total_ns), entry.total_ns / largest.total_ns),
      figure(duration(entry.self_ns), entry.self_ns / largest.self_ns),
      figure(count(entry.calls), entry.calls / largest.calls),
      ...["average_ns", "min_ns", "max_ns", "p99_ns"].map((key) => figure(duration(entry[key]))),
      element("td", { className: "wide" }, name)];
    return tableRow(cells, () => go({ view: "graph", function: String(entry.id) }));
  }

  async function load(further = false) {
    const number = ++asked;
    try {
      const answer = await ask("functions", { search: state.search || "", sort: state.sort || "total",
        reverse: state.reverse === "1" ? "1" : "0", offset: further ? rows.length : 0, limit: PAGE });
      if (number !== asked) return;
      if (!further) body.replaceChildren();
      rows = further ? [...rows, ...answer.rows] : answer.rows;
      for (const key of Object.keys(largest)) largest[key] = Math.max(largest[key], ...answer.rows.map((entry) => entry[key] || 0));
      body.append(...answer.rows.map(row));
      status.textContent = `${count(rows.length)} of ${count(answer.count)} functions`;
      more.hidden = rows.length >= answer.count;
      document.body.dataset.functions = String(answer.count);
    } catch (error) {
      context.notice(error.message);
    }
  }

  paintTitles();
  load();
  return {
    update(before) {
      if (["sort", "reverse", "search"].every((name) => before[name] === state[name])) return;
      paintTitles();
      load();
    },
  };
}

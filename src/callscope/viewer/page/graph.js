// One function: who calls it, what it calls, from where, its longest calls, its source. A click walks on.
import { ask } from "./api.js";
import { count, duration, element, facts, figure, label, moment, table, tableRow, visible } from "./dom.js";
import { showSource, sourceLink } from "./source.js";
import { go, state, stateNumber } from "./state.js";

/** The call graph around a function; the heaviest one when none is chosen. */
export function graphView(container, context) {
  const pane = element("div", { className: "pane" });
  container.append(pane);

  async function load() {
    try {
      let number = stateNumber("function");
      if (number === null) {
        const first = await ask("functions", { search: state.search || "", sort: "total", reverse: "0", offset: 0, limit: 1 });
        if (!first.rows.length) {
          pane.replaceChildren(element("p", { className: "dim" }, "No function was called"));
          return;
        }
        number = first.rows[0].id;
      }
      const found = await ask("function", { id: number });
      if (stateNumber("function") === null || stateNumber("function") === number) paintFunction(pane, found, context);
    } catch (error) {
      context.notice(error.message);
    }
  }

  load();
  return { update: (before) => { if (before.function !== state.function) load(); } };
}

function paintFunction(pane, found, context) {
  const own = context.summary.own_module;
  const { clock } = context.summary;
  const weight = (edge) => (clock ? edge.total_ns : edge.calls);
  const source = element("div");
  const below = element("div");
  const step = (edge, most) => {
    const known = edge.function === null ? ["[not traced]", null] : found.names[edge.function] || ["?", null];
    const act = edge.function === null ? {} : { onclick: () => go({ function: String(edge.function) }) };
    return element("button", { className: "step", "--share": `${(100 * weight(edge)) / most}%`, ...act },
      element("span", { className: "name" }, visible(label(known[0], known[1], own))),
      element("span", {}, `${count(edge.calls)} ×`), element("span", {}, clock ? duration(edge.total_ns) : ""));
  };
  const column = (title, edges, id) => {
    const most = Math.max(1, ...edges.map(weight));
    return element("div", { className: "column", id }, element("h3", {}, `${title} (${edges.length})`),
      ...edges.map((edge) => step(edge, most)));
  };
  const card = element("div", { className: "card", id: "center" },
    element("h2", {}, visible(label(found.function, found.module, own))),
    facts([
      ["Calls", count(found.calls)],
      ["Total", clock ? duration(found.total_ns) : null],
      ["Self", clock ? duration(found.self_ns) : null],
      ["Average", clock ? duration(found.average_ns) : null],
      ["Longest", clock ? duration(found.max_ns) : null],
      ["Module", visible(found.path || found.module || "")],
      ["Address", found.address === null ? null : `0x${found.address.toString(16)}, ${count(found.size)} bytes`],
      ["Source", sourceLink(found.file, found.line, () => source)],
    ]));
  pane.replaceChildren(
    element("div", { className: "walk" }, column("Callers", found.callers, "callers"), card,
      column("Callees", found.callees, "callees")),
    ...(found.left_out ? [element("p", { className: "dim" }, `${count(found.left_out)} more callers and callees are not shown`)] : []),
    element("div", { className: "columns" }, below, source));
  document.body.dataset.function = String(found.id);
  if (found.file) showSource(found.file, found.line || 1, source);
  paintPlaces(below, found, context, () => source);
}

async function paintPlaces(below, found, context, target) {
  const own = context.summary.own_module;
  const { clock } = context.summary;
  const sites = element("div", { id: "sites" }, element("h3", {}, "Call sites"), element("p", { className: "dim" }, "…"));
  const longest = element("div", { id: "longest" }, element("h3", {}, clock ? "Longest calls" : "First calls"),
    element("p", { className: "dim" }, "…"));
  below.replaceChildren(sites, longest);
  const fill = async (part, load) => {
    try {
      part.lastChild.replaceWith(await load());
    } catch (error) {
      part.lastChild.textContent = visible(error.message);
    }
  };
  await fill(sites, async () => {
    const rows = await ask("sites", { id: found.id });
    const most = Math.max(1, ...rows.map((row) => row.calls));
    return table(["From", "Place", "#Calls", "#Total"], rows.map((row) => {
      const known = row.function === null ? null : found.names[row.function];
      return tableRow([visible(known ? label(known[0], known[1], own) : "[not traced]"),
        sourceLink(row.file, row.line, target) || element("span", { className: "mono" }, visible(row.call_site || "-")),
        figure(count(row.calls), row.calls / most), figure(clock ? duration(row.total_ns) : "-")]);
    }));
  });
  await fill(longest, async () => {
    const rows = await ask("longest", { id: found.id });
    return table(["Call", "#Duration", "#Start", "#Thread"], rows.map((row) => tableRow([
      visible(row.arguments ? shortArguments(row) : `#${row.call_id}`), figure(duration(row.duration_ns)),
      figure(moment(row.start_ns)), figure(String(row.tid))],
    () => go({ view: "timeline", call: String(row.call_id), from: null, to: null }))));
  });
}

function shortArguments(row) {
  const text = `(${row.arguments.map((value) => `${value.name ? `${value.name}=` : ""}${value.text}`).join(", ")})` +
    (row.result ? ` = ${row.result.text}` : "");
  return text.length > 160 ? `${text.slice(0, 160)}…` : text;
}

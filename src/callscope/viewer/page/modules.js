// Programs and libraries over time.
import { ask } from "./api.js";
import { count, element, facts, moment, visible } from "./dom.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

/** Every load of a module as a bar. */
export function modulesView(container, context) {
  const whole = Math.max(context.summary.info.duration_ns || 0, 1);
  const pane = element("div", { className: "pane" });
  container.append(pane);
  ask("modules").then((rows) => {
    const several = new Set(rows.map((row) => row.pid)).size > 1;
    const lanes = rows.map((row) => {
      const begin = Math.max(0, Math.min((row.load_ns || 0) / whole, 1));
      const end = row.unload_ns === null ? 1 : Math.min(row.unload_ns / whole, 1);
      const bar = element("div", { className: row.traced ? "life traced" : "life" });
      bar.style.left = `${begin * 100}%`;
      bar.style.width = `${Math.max(end - begin, 0) * 100}%`;
      bar.onpointermove = (event) => showTooltip(event, visible(row.path || "?"),
        `loaded ${moment(row.load_ns)}, ${row.unload_ns === null ? "stayed" : `unloaded ${moment(row.unload_ns)}`}, at 0x${
          Number(row.base).toString(16)}${row.traced ? `, ${count(row.function_count)} functions, ${count(row.patch_count)} patches` : ", not traced"}`);
      bar.onpointerleave = hideTooltip;
      return element("div", { className: "lane" },
        element("div", { className: "name", title: visible(row.path || "?") }, several ? `${row.pid}  ` : "", visible(row.module)),
        element("div", { className: "track" }, bar));
    });
    pane.append(facts([["From", "0"], ["To", moment(whole)], ["Coloured", "modules whose functions were traced"]]),
      ...lanes);
  }).catch((error) => context.notice(error.message));
  return { close: hideTooltip };
}

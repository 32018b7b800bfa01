// The trace itself: what was recorded, and how completely.
import { count, duration, element, facts, figure, table, tableRow, visible } from "./dom.js";

/** `callscope info` as a page. */
export function summaryView(container, context) {
  const { info, threads } = context.summary;
  const command = visible((info.command || []).join(" "));
  const share = (part) => (part ? `${((100 * part.patched) / Math.max(part.found, 1)).toFixed(1)} %` : "-");
  container.append(element("div", { className: "pane" },
    element("h2", {}, command || visible(info.trace)),
    facts([
      ["Trace", visible(info.trace)],
      ["Directory", visible(info.cwd || "")],
      ["Host", visible([info.host?.hostname, info.host?.kernel].filter(Boolean).join(", "))],
      ["Started", visible(info.started || "")],
      ["Lasted", duration(info.duration_ns)],
      ["Exit status", info.exit_status === null ? null : String(info.exit_status)],
      ["Calls", count(info.calls)],
      ["Events lost", info.lost_events ? count(info.lost_events) : "none"],
      ["Processes", count(info.process_count)],
      ["Threads", count(info.thread_count)],
    ]),
    ...info.warnings.map((warning) => element("p", { className: "bad" }, visible(warning))),
    element("h3", {}, "Modules"),
    table(["Module", "#Functions", "#Called", "#Calls", "#Entries", "#Returns", "#Tail jumps"], info.modules.map((row) => tableRow([
      visible(row.path || "?"), figure(count(row.functions)), figure(count(row.functions_called)), figure(count(row.calls)),
      figure(share(row.coverage.entries)), figure(share(row.coverage.exits)), figure(share(row.coverage.tails))]))),
    element("h3", {}, "Threads"),
    table(["Name", "#Thread", "#Process", "#Calls", "Command"], threads.map((row) => tableRow([
      visible(row.name || "-"), figure(String(row.tid)), figure(String(row.pid)), figure(count(row.calls)), visible(row.command)])))));
  return {};
}

// Call stacks that were captured, equal ones together.
import { ask, embedded } from "./api.js";
import { count, element, moment, table, tableRow, visible } from "./dom.js";
import { showSource, sourceLink } from "./source.js";

/** Groups of equal stacks, the most frequent first. */
export function stacksView(container, context) {
  const source = element("div");
  const list = element("div", {}, element("p", { className: "dim" }, "Finding functions and lines …"));
  container.append(element("div", { className: "pane columns" }, list, source));
  ask("snapshots").then(({ count: all, groups }) => {
    list.replaceChildren();
    if (!groups.length) {
      list.append(element("p", { className: "dim" }, "No call stacks were captured: record with --stacks-at, --stacks-every or --stacks-on"));
      return;
    }
    list.append(element("p", { className: "dim" }, `${count(groups.length)} of ${count(all)} different stacks`));
    const place = groups[0].frames.find((frame) => frame.file);
    if (place && !embedded) showSource(place.file, place.line, source);
    groups.forEach((group, at) => list.append(stack(group, at < 3, () => source)));
  }).catch((error) => context.notice(error.message));
  return {};
}

function stack(group, open, target) {
  const first = group.frames[0];
  const when = group.count > 1 ? `${moment(group.first_ns)} to ${moment(group.last_ns)}` : `at ${moment(group.first_ns)}`;
  const head = `${count(group.count)} ×  ${visible(first?.function || "?")}  (${group.causes.join(", ")}; ${when})`;
  return element("details", { className: "stack", open }, element("summary", {}, head), framesTable(group.frames, target),
    group.ends ? element("p", { className: "dim" }, group.ends) : null);
}

/** Frames, the innermost first, with the calls inlined in them. */
export function framesTable(frames, target) {
  const rows = [];
  frames.forEach((frame, at) => {
    for (const inlined of frame.inlined || []) rows.push(tableRow(["", `${visible(inlined.function)} (inlined)`, "",
      sourceLink(inlined.file, inlined.line, target) || ""]));
    rows.push(tableRow([String(at), visible(frame.function || frame.address), visible(frame.module || ""),
      sourceLink(frame.file, frame.line, target) || element("span", { className: "mono dim" }, visible(frame.address ?? ""))]));
  });
  return table(["", "Function", "Module", "Place"], rows);
}

// The pane at the side: one call with its arguments, callers and source.
import { ask } from "./api.js";
import { count, duration, element, facts, label, link, moment, visible } from "./dom.js";
import { go, stateNumber } from "./state.js";
import { showSource, sourceLink } from "./source.js";

const detailsElement = document.getElementById("details");
const ENDINGS = { return: "returned", tail_call: "ended in a tail call", unwound: "was left by an exception or longjmp",
  running: "had not ended", off: "was open when recording went off" };

/** Show the call that the state names, or nothing. */
export async function showDetails(context) {
  const number = stateNumber("call");
  detailsElement.hidden = number === null;
  if (number === null) return;
  try {
    const call = await ask("call", { id: number });
    if (stateNumber("call") === number) paintDetails(call, context);
  } catch (error) {
    detailsElement.replaceChildren(element("p", { className: "bad" }, visible(error.message)));
  }
}

function paintDetails(call, context) {
  const own = context.summary.own_module;
  const source = element("div");
  const target = () => source;
  const select = (found) => link(visible(label(found.function, found.module, own)), () => go({ call: String(found.call_id) }));
  const caller = call.ancestors[0];
  const close = element("button", { onclick: () => go({ call: null }), title: "Close (Esc)" }, "✕");
  close.style.float = "right";
  detailsElement.replaceChildren(close,
    element("h2", {}, visible(label(call.function, call.module, own))),
    facts([
      ["Duration", call.duration_ns === null ? null : duration(call.duration_ns)],
      ["Own time", call.self_ns === null ? null : duration(call.self_ns)],
      ["Start", call.start_ns === null ? null : moment(call.start_ns)],
      ["End", ENDINGS[call.ended_by]],
      ["Called by", caller ? select(caller) : "nothing that was traced"],
      ["Through", call.via ? visible(call.via) : null],
      ["From", call.site_file ? sourceLink(call.site_file, call.site_line, target) : visible(call.call_site || "")],
      ["Defined", sourceLink(call.file, call.line, target)],
      ["Thread", `${call.tid} of process ${call.pid}`],
      ["Call", `${count(call.call_id)}, depth ${count(call.depth)}`],
    ]),
    element("p", {}, link("Function in the call graph", () => go({ view: "graph", function: String(call.function_id) })), " · ",
      link("Show in the timeline", () => go({ view: "timeline", from: null, to: null, call: String(call.call_id) }))));
  if (call.arguments?.length) detailsElement.append(element("h3", {}, "Arguments"), facts(call.arguments.map(
    (value, at) => [visible(value.name || String(at)), valueElement(value)])));
  if (call.result) detailsElement.append(element("h3", {}, "Result"), valueElement(call.result));
  if (call.ancestors.length) detailsElement.append(element("h3", {}, "Inside of"), element("ol", {},
    ...call.ancestors.map((found) => element("li", {}, select(found)))));
  detailsElement.append(source);
  if (call.file && stateNumber("call") !== null) showSource(call.file, call.line || 1, source);
}

function valueElement(value) {
  return element("span", { className: "mono name" }, visible(value.text ?? JSON.stringify(value.value)),
    element("span", { className: "dim" }, value.type ? `  ${visible(value.type)}` : ""));
}

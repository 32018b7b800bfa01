// What happened when the program crashed.
import { ask } from "./api.js";
import { element, visible } from "./dom.js";
import { sourceLink } from "./source.js";
import { framesTable } from "./stacks.js";

/** The crash report, with its back-trace beside the source. */
export function crashView(container, context) {
  const pane = element("div", { className: "pane" }, element("p", { className: "dim" }, "Finding functions and lines …"));
  container.append(pane);
  ask("crash").then((crash) => {
    pane.replaceChildren();
    if (!crash) {
      pane.append(element("p", { className: "dim" }, "The program did not crash"));
      return;
    }
    const source = element("div");
    const frames = crash.facts.backtrace.map((frame) => ({ ...frame, function: frame.function_name, module: frame.library_name,
      inlined: frame.inlines.map((inlined) => ({ ...inlined, function: inlined.function_name })) }));
    const place = crash.facts.backtrace.find((frame) => frame.file);
    pane.append(element("div", { className: "columns report" },
      element("div", {}, element("h2", { className: "bad" }, visible(crash.text[0])),
        element("h3", {}, "Back-trace"), framesTable(frames, () => source),
        element("h3", {}, "Report"), element("pre", {}, crash.text.slice(1).map(visible).join("\n"))),
      source));
    const first = place && sourceLink(place.file, place.line, () => source);
    first?.onclick?.(new Event("click"));
  }).catch((error) => context.notice(error.message));
  return {};
}

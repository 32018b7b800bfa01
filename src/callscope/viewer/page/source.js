// Source text, where the file is on this machine.
import { ask, embedded } from "./api.js";
import { element, link, visible } from "./dom.js";

/** FILE:LINE as a link that opens the text in `target`; null without a file. */
export function sourceLink(file, line, target) {
  if (!file) return null;
  const short = visible(`${file.split("/").pop()}${line ? `:${line}` : ""}`);
  if (embedded) return element("span", { title: visible(file) }, short);
  const made = link(short, (event) => {
    event.stopPropagation();
    showSource(file, line || 1, target());
  });
  made.title = visible(file);
  return made;
}

/** Show a file around a line in an element. */
export async function showSource(file, line, target) {
  try {
    const source = await ask("source", { file, line });
    const lines = source.lines.map((text, at) => {
      const number = source.first + at;
      return element("div", number === source.line ? { className: "here" } : {},
        element("span", { className: "number" }, String(number)), visible(text.replaceAll("\t", "        ")));
    });
    const pane = element("div", { className: "source mono" }, ...lines);
    target.replaceChildren(element("h3", {}, visible(`${source.file}:${source.line}`)), pane);
    const here = pane.querySelector(".here");
    if (here) pane.scrollTop = here.offsetTop - pane.offsetTop - pane.clientHeight / 3;
  } catch (error) {
    target.replaceChildren(element("p", { className: "dim" }, visible(error.message)));
  }
}

// Elements and texts. Names come from traced programs and may hold anything: they are only ever set as text.

/** An element: `properties` are set on it (class, style variables, on...), children are elements or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A link that does something here. */
export function link(text, act) {
  return element("a", { tabIndex: 0, role: "button", textContent: text, onclick: act, onkeydown: (event) => {
    if (event.key === "Enter") act(event);
  } });
}

/** A row of a table that does something when clicked; cells are texts or elements, numbers right-aligned. */
export function tableRow(cells, act) {
  const row = element("tr", act ? { className: "link", tabIndex: 0, onclick: act } : {});
  if (act) row.onkeydown = (event) => { if (event.key === "Enter") act(event); };
  for (const cell of cells) row.append(cell instanceof HTMLTableCellElement ? cell : element("td", {}, cell));
  return row;
}

/** A cell with a figure; share (0 to 1) draws a bar behind it. */
export function figure(text, share = 0) {
  return element("td", { className: "number share", "--share": `${Math.min(share, 1) * 100}%` }, text);
}

/** A table with titles, of which those that begin with # are of figures. */
export function table(titles, rows) {
  const head = titles.map((title) => element("th", title.startsWith("#") ? { className: "number" } : {},
    title.replace(/^#/, "")));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

/** Names and values, those without a value left out. */
export function facts(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", {}, name), element("dd", {}, value));
  }
  return list;
}

/** Nanoseconds as three digits and a unit. */
export function duration(ns) {
  if (ns === null || ns === undefined) return "-";
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (Math.abs(ns) >= unit * 0.9995) {
      const value = ns / unit;
      return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${name}`;
    }
  }
  return `${Math.round(ns)} ns`;
}

/** A moment since the start, to the nanosecond. */
export function moment(ns) {
  return ns === null || ns === undefined ? "-" : `${(ns / 1e9).toFixed(9)} s`;
}

/** A whole number with separators. */
export function count(value) {
  return value === null || value === undefined ? "-" : value.toLocaleString("en-US");
}

/** MODULE!NAME, without the module where it is the program's own or in the name already. */
export function label(name, module, own = null) {
  return !module || module === own || name.startsWith(`${module}+0x`) ? name : `${module}!${name}`;
}

/** What is visible of a text in which bytes do strange things: control characters and reversals as escapes. */
export function visible(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const PALETTE = new Map();

/** Colours of a function: back and text, from its module and name, for light and dark pages. */
export function colours(name, module, dark) {
  const key = `${dark}${module}\n${name}`;
  let found = PALETTE.get(key);
  if (!found) {
    const hue = ((textHash(module || "?") % 12) * 30 + (textHash(name) % 170)) % 360;
    const light = (textHash(name) >> 8) % 12;
    found = dark
      ? { back: `hsl(${hue} 38% ${30 + light}%)`, text: "#f2f4f7" }
      : { back: `hsl(${hue} 58% ${71 + light}%)`, text: "#15191f" };
    PALETTE.set(key, found);
  }
  return found;
}

function textHash(text) {
  let value = 5381;
  for (let at = 0; at < text.length; at++) value = ((value * 33) ^ text.charCodeAt(at)) >>> 0;
  return value;
}

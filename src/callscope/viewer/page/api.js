// Data: asked of the server, or, in an exported page, found in the page itself.

const embeddedElement = document.getElementById("embedded");

/** The data of an exported page; null in a served one. */
export const embedded = embeddedElement ? JSON.parse(embeddedElement.textContent) : null;

const ANSWERS = new Map();
const MOST_KEPT = 200;

/** The answer to a question. Rejects with an Error whose message can be shown. */
export function ask(name, parameters = {}) {
  const key = `${name}?${new URLSearchParams(parameters)}`;
  if (!ANSWERS.has(key)) {
    if (ANSWERS.size >= MOST_KEPT) ANSWERS.delete(ANSWERS.keys().next().value);
    const answer = embedded ? fromPage(name, parameters) : fromServer(key);
    answer.catch(() => ANSWERS.delete(key));
    ANSWERS.set(key, answer);
  }
  return ANSWERS.get(key);
}

async function fromServer(address) {
  let response;
  try {
    response = await fetch(`api/${address}`, { credentials: "same-origin" });
  } catch {
    throw new Error("callscope view does not answer any more: start it again");
  }
  if (response.status === 403) throw new Error("the token is missing: open the address that callscope view printed");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `error ${response.status}`);
  return answer;
}

async function fromPage(name, parameters) {
  if (name === "functions") return functionsOfPage(parameters);
  const kept = name === "flame" && parameters.thread !== undefined ? embedded.flames[parameters.thread] : embedded[name];
  const key = { timeline: "thread", function: "id", sites: "id", longest: "id" }[name];
  const answer = kept !== undefined && key ? kept[parameters[key]] : kept;
  if (answer === undefined) throw new Error("this is not in the exported page: open the trace with callscope view");
  return name === "flame" && parameters.root !== undefined ? flameOfPage(answer, Number(parameters.root)) : answer;
}

function functionsOfPage({ search = "", sort = "total", reverse = "0", offset = 0, limit = 100 }) {
  const wanted = search.toLowerCase();
  const field = sort === "name" ? "function" : sort === "calls" ? "calls" : `${sort}_ns`;
  const rows = embedded.functions.rows.filter((row) => `${row.module}!${row.function}`.toLowerCase().includes(wanted));
  const order = (one, other) => (sort === "name" ? one.function.localeCompare(other.function) : other[field] - one[field]);
  rows.sort((one, other) => (reverse === "1" ? -order(one, other) : order(one, other)));
  const first = Number(offset);
  return { count: rows.length, rows: rows.slice(first, first + Number(limit)) };
}

/** The part of the embedded paths that lies at or below one: parents come before their children. */
function flameOfPage(all, root) {
  const columns = ["node", "parent", "function", "calls", "weight", "own"];
  const inside = new Set([root]);
  const found = { ...all, ...Object.fromEntries(columns.map((name) => [name, []])) };
  all.node.forEach((node, at) => {
    if (!inside.has(node) && !inside.has(all.parent[at])) return;
    inside.add(node);
    for (const name of columns) found[name].push(all[name][at]);
  });
  return found;
}

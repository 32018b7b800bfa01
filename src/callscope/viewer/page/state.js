// What is looked at stands in the address (#view=...), so that every state can be linked and gone back to.

const LISTENERS = [];

/** The state: strings by name. */
export let state = read();

function read() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return { view: "timeline", ...found };
}

/** A whole number of the state, or null. */
export function stateNumber(name) {
  const value = Number(state[name]);
  return state[name] !== undefined && Number.isSafeInteger(value) && value >= 0 ? value : null;
}

/** Change the state; null takes a name out. `replace`: without a step to go back to. */
export function go(changes, replace = false) {
  const next = { ...state, ...changes };
  for (const [name, value] of Object.entries(next)) if (value === null || value === "") delete next[name];
  const hash = `#${new URLSearchParams(next)}`;
  if (hash === location.hash) return;
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  changed();
}

/** Call `listener` with the old state whenever the state changes. */
export function onState(listener) {
  LISTENERS.push(listener);
}

function changed() {
  const before = state;
  state = read();
  for (const listener of LISTENERS) listener(before);
}

window.addEventListener("popstate", changed);

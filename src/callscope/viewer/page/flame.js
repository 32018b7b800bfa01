// Call paths as boxes, as wide as the time spent below them: by name (flame graph), or the heaviest first (left-heavy).
import { ask } from "./api.js";
import { colours, count, duration, element, label, link, visible } from "./dom.js";
import { go, state, stateNumber } from "./state.js";
import { fitted } from "./timeline.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

const ROW = 19;
const MOST_LEVELS = 1500;
const NARROWEST = 0.4;

/** The view of call paths. */
export function flameView(container, context) {
  return new FlameView(container, context);
}

class FlameView {
  constructor(container, context) {
    this.container = container;
    this.context = context;
    this.head = element("div", { className: "bar-row" });
    this.canvas = element("canvas", { role: "img" });
    this.canvas.setAttribute("aria-label", "Flame graph");
    container.append(this.head, this.canvas);
    this.observer = new ResizeObserver(() => this.place());
    this.observer.observe(container);
    this.canvas.onpointermove = (event) => this.hover(event);
    this.canvas.onpointerleave = hideTooltip;
    this.canvas.onclick = (event) => this.click(event);
    this.canvas.ondblclick = (event) => {
      const box = this.at(event.offsetX, event.offsetY);
      if (box && box.at >= 0) go({ view: "graph", function: String(this.data.function[box.at]) });
    };
    this.load();
  }

  close() {
    this.observer.disconnect();
    hideTooltip();
  }

  update(before) {
    if (before.root !== state.root || before.thread !== state.thread) this.load();
    else if (before.order !== state.order) this.place();
    else this.refresh();
  }

  async load() {
    const asked = Object.fromEntries(["root", "thread"].map((name) => [name, stateNumber(name)]).filter(([, value]) => value !== null));
    const wanted = this.wanted = JSON.stringify(asked);
    try {
      const answer = await ask("flame", asked);
      if (this.wanted !== wanted) return;
      this.data = answer;
    } catch (error) {
      this.context.notice(error.message);
      return;
    }
    this.children = new Map();
    this.data.node.forEach((node, at) => {
      const parent = this.data.parent[at];
      if (!this.children.has(parent)) this.children.set(parent, []);
      this.children.get(parent).push(at);
    });
    this.place();
  }

  weightText(value) {
    return this.context.summary.clock ? duration(value) : `${count(value)} calls`;
  }

  paintHead() {
    const root = stateNumber("root");
    const heavy = state.order === "heavy";
    const order = (name, title) => element("button", { className: (name === "heavy") === heavy ? "on" : "",
      onclick: () => go({ order: name === "heavy" ? "heavy" : null }) }, title);
    const out = root === null ? null : link(stateNumber("thread") === null ? "whole program" : "whole thread", () => go({ root: null }));
    const left = this.data.left_out ? `, ${count(this.data.left_out)} narrow paths left out` : "";
    this.head.replaceChildren(...this.threadChoice(), order("name", "By name"), order("heavy", "Left heavy"), ...(out ? [out] : []),
      element("span", { className: "dim" },
        `${this.weightText(this.data.whole)} in ${count(this.data.node.length)} paths${left}. Click: zoom; double click: call graph`));
  }

  /** All threads or one, where there are several. */
  threadChoice() {
    const threads = this.context.summary.threads.filter((thread) => thread.lanes > 0);
    if (threads.length < 2) return [];
    const titles = threads.map(({ thread, name, tid, pid, calls }) => [String(thread),
      `${visible(name || "thread")} ${tid} of process ${pid}, ${count(calls)} calls`]);
    const choice = element("select", { id: "flame-thread", title: "Thread",
      onchange: () => go({ thread: choice.value || null, root: null }) },
    ...[["", `all ${threads.length} threads`], ...titles].map(([value, title]) => element("option", { value }, title)));
    choice.value = state.thread || "";
    return [choice];
  }

  /** Lay boxes out: {at, x, wide (shares), level}. */
  place() {
    if (!this.data) return;
    this.paintHead();
    const { data } = this;
    const root = stateNumber("root");
    const tops = root === null ? this.children.get(-1) || [] : [data.node.indexOf(root)].filter((at) => at >= 0);
    const whole = tops.reduce((sum, at) => sum + data.weight[at], 0) || 1;
    const wide = this.container.clientWidth;
    this.boxes = root === null ? [{ at: -1, x: 0, share: 1, level: 0 }] : [];
    const name = (at) => data.names[data.function[at]]?.[0] || "?";
    const order = state.order === "heavy"
      ? (one, other) => data.weight[other] - data.weight[one]
      : (one, other) => (name(one) < name(other) ? -1 : name(one) > name(other) ? 1 : 0);
    const waiting = [[tops, 0, this.boxes.length]];
    while (waiting.length) {
      const [siblings, begin, level] = waiting.pop();
      if (level > MOST_LEVELS) continue;
      let x = begin;
      for (const at of [...siblings].sort(order)) {
        const share = data.weight[at] / whole;
        if (share * wide >= NARROWEST) {
          this.boxes.push({ at, x, share, level });
          waiting.push([this.children.get(data.node[at]) || [], x, level + 1]);
        }
        x += share;
      }
    }
    this.levels = this.boxes.reduce((most, box) => Math.max(most, box.level + 1), 1);
    const ratio = devicePixelRatio || 1;
    this.width = wide;
    this.canvas.width = Math.round(wide * ratio);
    this.canvas.height = Math.round(this.levels * ROW * ratio);
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${this.levels * ROW}px`;
    this.ratio = ratio;
    this.whole = whole;
    this.refresh();
  }

  refresh() {
    if (!this.boxes) return;
    const draw = this.canvas.getContext("2d");
    draw.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    draw.clearRect(0, 0, this.width, this.levels * ROW);
    draw.font = '12px system-ui, "DejaVu Sans", sans-serif';
    draw.textBaseline = "middle";
    const searched = (state.search || "").toLowerCase();
    for (const box of this.boxes) {
      const [name, module] = this.names(box);
      const colour = colours(name, module, this.context.dark);
      const [x, wide] = [box.x * this.width, Math.max(box.share * this.width - 0.7, 0.5)];
      draw.globalAlpha = !searched || label(name, module).toLowerCase().includes(searched) ? 1 : 0.15;
      draw.fillStyle = colour.back;
      draw.fillRect(x, box.level * ROW, wide, ROW - 1);
      if (wide > 24) {
        draw.fillStyle = colour.text;
        draw.fillText(fitted(draw, visible(label(name, module, this.context.summary.own_module)), wide - 8),
          x + 4, box.level * ROW + ROW / 2);
      }
    }
    draw.globalAlpha = 1;
    document.body.dataset.flame = `${this.boxes.length}`;
    document.body.dataset.flameThread = String(stateNumber("thread") ?? "");
  }

  names(box) {
    if (box.at < 0) {
      const chosen = this.context.summary.threads.find((thread) => thread.thread === stateNumber("thread"));
      return [chosen ? `${chosen.name || "thread"} ${chosen.tid}` : this.context.summary.name, null];
    }
    return this.data.names[this.data.function[box.at]] || ["?", null];
  }

  at(x, y) {
    const level = Math.floor(y / ROW);
    const share = x / this.width;
    return this.boxes?.find((box) => box.level === level && share >= box.x && share < box.x + box.share);
  }

  hover(event) {
    const box = this.at(event.offsetX, event.offsetY);
    this.canvas.style.cursor = box ? "pointer" : "default";
    if (!box) return hideTooltip();
    const [name, module] = this.names(box);
    if (box.at < 0) return showTooltip(event, visible(name), this.weightText(this.whole));
    const { weight, own, calls } = this.data;
    const percent = ((100 * weight[box.at]) / this.whole).toFixed(1);
    return showTooltip(event, visible(label(name, module)), `${this.weightText(weight[box.at])} (${percent} %), ` +
      `${this.weightText(own[box.at])} of its own, ${count(calls[box.at])} calls`);
  }

  click(event) {
    const box = this.at(event.offsetX, event.offsetY);
    if (box) go({ root: box.at < 0 ? null : String(this.data.node[box.at]) });
  }

  key(event) {
    if (event.key === "Backspace") {
      const root = stateNumber("root");
      const at = root === null ? -1 : this.data.node.indexOf(root);
      const parent = at < 0 ? -1 : this.data.parent[at];
      go({ root: parent < 0 ? null : String(parent) });
    } else if (event.key.toLowerCase() === "o") {
      go({ order: state.order === "heavy" ? null : "heavy" });
    } else return false;
    return true;
  }
}

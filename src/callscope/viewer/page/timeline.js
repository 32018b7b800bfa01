// All threads over time. The server sends, for the window on the screen, calls that a pixel can show and the density
// of shorter ones; nearer windows are asked for as one zooms in.
import { ask, embedded } from "./api.js";
import { colours, count, duration, label, moment, visible } from "./dom.js";
import { go, state, stateNumber } from "./state.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

const LANE = 18;
const TITLE = 22;
const AXIS = 24;
const FEWEST_NS = 20;
const MOST_SHOWN_LANES = 256;
const FONT = '11px system-ui, "DejaVu Sans", sans-serif';

/** The view of all threads. */
export function timelineView(container, context) {
  return new TimelineView(container, context);
}

class TimelineView {
  constructor(container, context) {
    this.container = container;
    this.context = context;
    this.summary = context.summary;
    this.whole = Math.max(this.summary.end, FEWEST_NS);
    this.home = this.callsWindow();
    this.canvas = document.createElement("canvas");
    this.canvas.className = "fill";
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Timeline of all threads");
    container.append(this.canvas);
    this.scroll = 0;
    this.drag = null;
    this.pointer = null;
    const limit = this.summary.threads.length === 1 ? 64 : this.summary.threads.length <= 4 ? 16 : 6;
    this.tracks = this.summary.threads.filter((thread) => thread.lanes > 0).map((thread) => ({
      thread, limit, lanes: Math.min(thread.lanes, limit), lane: 0, answer: null, wanted: "", top: 0,
    }));
    this.layout();
    this.readWindow();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(container);
    this.listen();
    this.resize();
    const call = stateNumber("call");
    if (call !== null && state.from === undefined) this.zoomToCall(call);
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.timer);
    clearTimeout(this.linkTimer);
    hideTooltip();
  }

  update(before) {
    if (before.from !== state.from || before.to !== state.to) this.readWindow();
    this.request();
    this.refresh();
  }

  readWindow() {
    const from = stateNumber("from");
    const to = stateNumber("to");
    const sound = from !== null && to !== null && from < to;
    [this.from, this.to] = sound ? [from, to] : this.home;
    this.request();
  }

  /** From the first call to the last: programs take a while until they make any. */
  callsWindow() {
    const busy = this.summary.clock ? this.summary.threads.filter((thread) => thread.lanes > 0) : [];
    if (!busy.length) return [0, this.whole];
    const begin = Math.min(...busy.map((thread) => thread.first_ns));
    const end = Math.max(...busy.map((thread) => thread.end_ns ?? this.whole), begin + FEWEST_NS);
    return [Math.max(Math.floor(begin - (end - begin) / 100), 0), Math.ceil(end + (end - begin) / 100)];
  }

  layout() {
    let top = AXIS;
    for (const track of this.tracks) {
      track.top = top;
      top += TITLE + track.lanes * LANE + 6;
    }
    this.height = top;
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.container.clientWidth;
    this.view = this.container.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.view * ratio);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.view}px`;
    this.draw = this.canvas.getContext("2d");
    this.draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.setScroll(this.scroll);
    this.request();
  }

  setScroll(value) {
    this.scroll = Math.max(0, Math.min(value, this.height - this.view));
    this.request();
    this.refresh();
  }

  setWindow(from, to) {
    const span = Math.max(Math.min(to - from, this.whole * 1.1), FEWEST_NS);
    const middle = Math.max(-0.05 * this.whole + span / 2, Math.min((from + to) / 2, this.whole * 1.05 - span / 2));
    this.from = Math.max(Math.round(middle - span / 2), 0);
    this.to = Math.round(this.from + span);
    this.request();
    this.refresh();
    clearTimeout(this.linkTimer);
    this.linkTimer = setTimeout(() => {
      const all = this.from === this.home[0] && this.to === this.home[1];
      go({ from: all ? null : String(this.from), to: all ? null : String(this.to) }, true);
    }, 250);
  }

  zoom(factor, x = this.width / 2) {
    const at = this.time(x);
    this.setWindow(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  pan(share) {
    const move = (this.to - this.from) * share;
    this.setWindow(this.from + move, this.to + move);
  }

  time(x) {
    return this.from + (x / Math.max(this.width, 1)) * (this.to - this.from);
  }

  place(time) {
    return ((time - this.from) / (this.to - this.from)) * this.width;
  }

  request() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), this.tracks.some((track) => track.answer) ? 50 : 0);
  }

  async load() {
    if (!this.width) return;
    const span = this.to - this.from;
    const from = Math.max(Math.floor(this.from - span / 2), 0);
    const to = Math.ceil(this.to + span / 2);
    await Promise.all(this.tracks.map(async (track) => {
      const top = track.top - this.scroll;
      if (top > this.view + 200 || top + TITLE + track.lanes * LANE < -200) return;
      const asked = { thread: track.thread.thread, from, to, pixels: Math.min(this.width, 4000), lane: track.lane, lanes: track.lanes };
      const key = JSON.stringify(asked);
      if (track.wanted === key) return;
      track.wanted = key;
      try {
        const answer = await ask("timeline", asked);
        if (track.wanted === key) track.answer = answer;
      } catch (error) {
        track.wanted = "";
        this.context.notice(error.message);
      }
    }));
    this.refresh();
    document.body.dataset.timeline = `${this.from}-${this.to}`;
  }

  refresh() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.draw || !this.container.contains(this.canvas)) return;
    const style = getComputedStyle(document.documentElement);
    this.ink = Object.fromEntries(["back", "panel", "line", "text", "dim", "accent", "mark"].map(
      (name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    const { draw } = this;
    draw.fillStyle = this.ink.back;
    draw.fillRect(0, 0, this.width, this.view);
    draw.font = FONT;
    draw.textBaseline = "middle";
    this.searched = (state.search || "").toLowerCase();
    for (const track of this.tracks) {
      const top = track.top - this.scroll;
      if (top < this.view && top + TITLE + track.lanes * LANE > AXIS) this.paintTrack(track, top);
    }
    this.paintAxis();
    if (!this.tracks.length) {
      draw.fillStyle = this.ink.dim;
      draw.fillText("No calls were recorded", 20, AXIS + 30);
    }
  }

  paintAxis() {
    const { draw } = this;
    draw.fillStyle = this.ink.panel;
    draw.fillRect(0, 0, this.width, AXIS);
    draw.fillStyle = this.ink.line;
    draw.fillRect(0, AXIS - 1, this.width, 1);
    const about = ((this.to - this.from) / Math.max(this.width, 1)) * 120;
    const power = 10 ** Math.floor(Math.log10(about));
    const step = Math.max([1, 2, 5, 10].find((value) => value * power >= about) * power, 1);
    draw.font = FONT;
    for (let time = Math.ceil(this.from / step) * step; time < this.to; time += step) {
      const x = Math.round(this.place(time));
      draw.fillStyle = this.ink.line;
      draw.fillRect(x, 0, 1, AXIS);
      draw.fillStyle = this.ink.dim;
      draw.fillText(this.summary.clock ? tick(time, step) : count(time), x + 4, AXIS / 2);
    }
  }

  paintTrack(track, top) {
    const { draw } = this;
    if (track.answer) this.paintCalls(track, top + TITLE);
    draw.fillStyle = this.ink.panel;
    draw.fillRect(0, top, this.width, TITLE - 2);
    draw.fillStyle = this.ink.text;
    const hidden = track.thread.lanes - track.lanes;
    const more = hidden > 0 ? `  ▸ ${count(hidden)} more levels: click` : track.lanes > track.limit ? "  ▾" : "";
    const { name, tid, pid, calls } = track.thread;
    draw.fillText(`${visible(name || "thread")}  ${tid}  of process ${pid}   ${count(calls)} calls${more}`, 8, top + TITLE / 2 - 1);
  }

  paintCalls(track, top) {
    const { answer } = track;
    const { bins, calls, names } = answer;
    const scale = this.width / (this.to - this.from);
    const { draw } = this;
    const cell = Math.max(answer.bin_ns * scale, 1);
    for (let at = 0; at < bins.bin.length; at++) {
      const x = this.place(answer.begin + bins.bin[at] * answer.bin_ns);
      if (x + cell < 0 || x > this.width || bins.depth[at] >= track.lane + track.lanes) continue;
      draw.globalAlpha = this.faded(bins.function[at], names, 0.25 + 0.65 * (bins.busy[at] / 255));
      draw.fillStyle = this.colour(bins.function[at], names).back;
      draw.fillRect(x, top + (bins.depth[at] - track.lane) * LANE, cell, LANE - 1);
    }
    const chosen = stateNumber("call");
    for (let at = 0; at < calls.call.length; at++) {
      const left = this.place(calls.start[at]);
      const right = left + calls.duration[at] * scale;
      if (right < 0 || left > this.width || calls.depth[at] >= track.lane + track.lanes) continue;
      this.paintCall(Math.max(left, -2), Math.min(right, this.width + 2), top + (calls.depth[at] - track.lane) * LANE,
        calls.function[at], names, calls.call[at] === chosen);
    }
    draw.globalAlpha = 1;
  }

  paintCall(left, right, y, number, names, chosen) {
    const { draw } = this;
    const wide = Math.max(right - left - (right - left > 3 ? 1 : 0), 1);
    const colour = this.colour(number, names);
    draw.globalAlpha = this.faded(number, names, 1);
    draw.fillStyle = colour.back;
    draw.fillRect(left, y, wide, LANE - 1);
    if (wide > 26) {
      const known = names[number] || ["?", null];
      draw.fillStyle = colour.text;
      draw.fillText(fitted(draw, visible(label(known[0], known[1], this.summary.own_module)), wide - 8),
        Math.max(left, 0) + 4, y + LANE / 2);
    }
    if (chosen) {
      draw.globalAlpha = 1;
      draw.lineWidth = 2;
      draw.strokeStyle = this.ink.accent;
      draw.strokeRect(left, y, Math.max(wide, 3), LANE - 1);
    }
  }

  colour(number, names) {
    const known = names[number] || ["?", null];
    return colours(known[0], known[1], this.context.dark);
  }

  faded(number, names, alpha) {
    if (!this.searched) return alpha;
    const known = names[number] || ["?", ""];
    return label(known[0], known[1]).toLowerCase().includes(this.searched) ? 1 : 0.12;
  }

  /** What lies at a point: {track}, with call or bin, or null. */
  at(x, y) {
    const inside = y + this.scroll;
    const track = this.tracks.find((one) => inside >= one.top && inside < one.top + TITLE + one.lanes * LANE);
    if (!track || y < AXIS) return null;
    if (inside < track.top + TITLE) return { track, title: true };
    const { answer } = track;
    if (!answer) return { track };
    const depth = Math.floor((inside - track.top - TITLE) / LANE) + track.lane;
    const time = this.time(x);
    const slack = (this.to - this.from) / this.width;
    const { calls, bins } = answer;
    let found = -1;
    for (let at = 0; at < calls.call.length; at++) {
      if (calls.depth[at] !== depth || calls.start[at] > time) continue;
      if (time <= calls.start[at] + Math.max(calls.duration[at], slack)) found = at;
    }
    if (found >= 0) return { track, call: found };
    const bin = Math.floor((time - answer.begin) / answer.bin_ns);
    const place = bins.bin.findIndex((value, at) => value === bin && bins.depth[at] === depth);
    return place >= 0 ? { track, bin: place } : { track };
  }

  hover(event) {
    const hit = this.at(event.offsetX, event.offsetY);
    this.canvas.style.cursor = hit && (hit.call !== undefined || hit.title) ? "pointer" : "default";
    if (!hit || (hit.call === undefined && hit.bin === undefined)) return hideTooltip();
    const { calls, bins, names } = hit.track.answer;
    const number = hit.call !== undefined ? calls.function[hit.call] : bins.function[hit.bin];
    const known = names[number] || ["?", null];
    const title = visible(label(known[0], known[1], this.summary.own_module));
    if (hit.bin !== undefined) {
      return showTooltip(event, title, `the longest of ${count(bins.calls[hit.bin])} short calls here: zoom in`);
    }
    const length = calls.duration[hit.call];
    const text = this.summary.clock ? `${duration(length)}, from ${moment(calls.start[hit.call])}` : `${count(length)} calls`;
    return showTooltip(event, title, text);
  }

  click(event) {
    const hit = this.at(event.offsetX, event.offsetY);
    if (!hit) return;
    if (hit.title) {
      const { track } = hit;
      track.lanes = Math.min(track.thread.lanes, track.lanes > track.limit ? track.limit : MOST_SHOWN_LANES);
      this.layout();
      this.setScroll(this.scroll);
    } else if (hit.call !== undefined) {
      go({ call: String(hit.track.answer.calls.call[hit.call]) });
    } else if (hit.bin !== undefined && !embedded) {
      this.zoom(0.1, event.offsetX);
    }
  }

  async zoomToCall(number) {
    try {
      const call = await ask("call", { id: number });
      const start = this.summary.clock ? call.start_ns : call.order;
      const length = Math.max(this.summary.clock ? call.duration_ns : call.order_span, FEWEST_NS);
      this.setWindow(start - length * 0.1, start + length * 1.1);
      const track = this.tracks.find((one) => one.thread.thread === call.thread);
      if (!track) return;
      if (call.depth >= track.lanes) {
        track.lanes = Math.min(track.thread.lanes, MOST_SHOWN_LANES);
        track.lane = Math.max(0, Math.min(call.depth - 20, track.thread.lanes - track.lanes));
        this.layout();
      }
      const y = track.top + TITLE + (call.depth - track.lane) * LANE;
      if (y - this.scroll < AXIS + 40 || y - this.scroll > this.view - 40) this.setScroll(y - this.view / 2);
    } catch (error) {
      this.context.notice(error.message);
    }
  }

  async callerOf(number) {
    const call = await ask("call", { id: number });
    if (call.parent_id !== null) go({ call: String(call.parent_id) });
  }

  key(event) {
    const x = this.pointer ?? this.width / 2;
    const call = stateNumber("call");
    const act = {
      w: () => this.zoom(0.6, x), "+": () => this.zoom(0.6, x), "=": () => this.zoom(0.6, x),
      s: () => this.zoom(1 / 0.6, x), "-": () => this.zoom(1 / 0.6, x),
      a: () => this.pan(-0.2), arrowleft: () => this.pan(-0.2), d: () => this.pan(0.2), arrowright: () => this.pan(0.2),
      arrowup: () => this.setScroll(this.scroll - 3 * LANE), arrowdown: () => this.setScroll(this.scroll + 3 * LANE),
      pageup: () => this.setScroll(this.scroll - this.view * 0.8), pagedown: () => this.setScroll(this.scroll + this.view * 0.8),
      0: () => this.setWindow(...this.home), home: () => this.setWindow(...this.home),
      f: () => call !== null && this.zoomToCall(call),
      p: () => call !== null && this.callerOf(call),
      enter: () => call !== null && ask("call", { id: call }).then((found) => go({ view: "graph", function: String(found.function_id) })),
    }[event.key.toLowerCase()];
    act?.();
    return Boolean(act);
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const move = event.deltaY * (event.deltaMode === 1 ? 20 : 1);
      if (event.shiftKey) this.setScroll(this.scroll + (move || event.deltaX));
      else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX / this.width);
      else this.zoom(1.0018 ** Math.max(-300, Math.min(move, 300)), event.offsetX);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.drag = { x: event.offsetX, y: event.offsetY, from: this.from, to: this.to, scroll: this.scroll, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      this.pointer = event.offsetX;
      if (!this.drag) return this.hover(event);
      const [right, down] = [event.offsetX - this.drag.x, event.offsetY - this.drag.y];
      if (Math.abs(right) + Math.abs(down) > 4) this.drag.moved = true;
      if (!this.drag.moved) return;
      const time = (right / this.width) * (this.drag.to - this.drag.from);
      this.setWindow(this.drag.from - time, this.drag.to - time);
      this.setScroll(this.drag.scroll - down);
    });
    canvas.addEventListener("pointerup", (event) => {
      const moved = this.drag?.moved;
      this.drag = null;
      if (!moved) this.click(event);
    });
    canvas.addEventListener("dblclick", (event) => {
      const hit = this.at(event.offsetX, event.offsetY);
      if (hit?.call !== undefined) this.zoomToCall(hit.track.answer.calls.call[hit.call]);
    });
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      hideTooltip();
    });
  }
}

/** A tick's time: digits as fine as the step between ticks. */
function tick(time, step) {
  const [unit, name] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => time >= size && step >= size / 1000) || [1, "ns"];
  if (time === 0) return "0";
  const digits = Math.max(0, Math.ceil(Math.log10(unit / step)));
  return `${(time / unit).toFixed(Math.min(digits, 9))} ${name}`;
}

/** A text cut to a width. */
export function fitted(draw, text, wide) {
  if (text.length * 12 < wide || draw.measureText(text.slice(0, 400)).width <= wide) return text.slice(0, 400);
  let [low, high] = [0, Math.min(text.length, Math.ceil(wide / 2))];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (draw.measureText(`${text.slice(0, middle)}…`).width <= wide) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}

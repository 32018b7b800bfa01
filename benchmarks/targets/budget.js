// A loop of calls: writes a line every so many rounds.
class Counter {
  constructor() {
    this.values = new Map();
  }
  add(key, value) {
    this.values.set(key, (this.values.get(key) || 0) + value);
  }
}

function turn(counter, from) {
  const words = [];
  for (let i = from; i < from + 2000; i++) {
    counter.add(`key${i % 997}`, i);
    words.push(JSON.stringify({ i, text: "x".repeat(i % 17) }));
  }
  return words.sort().join(",").split(",").length;
}

const counter = new Counter();
for (let round = 0; round < 9000; round++) console.log(turn(counter, round * 7));

"use strict";
// What moves on the page: the step, the divider, the token that is looked at. All data are in the page itself.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const state = { step: 0, image: 0, frame: 0, overlay: "computed", token: null };
const CATEGORIES = [
  "#1f77b4", "#aec7e8", "#ff7f0e", "#ffbb78", "#2ca02c", "#98df8a", "#d62728", "#ff9896", "#9467bd", "#c5b0d5",
  "#8c564b", "#c49c94", "#e377c2", "#f7b6d2", "#7f7f7f", "#c7c7c7", "#bcbd22", "#dbdb8d", "#17becf", "#9edae5",
];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const LARGEST = 640; // pixels of a map of tokens, about
const FRAMED = 12; // pixels of a token's side from which on frames around tokens do not hide them
const oldest = Math.max(1, ...data.runs.map((run) => run.oldest));
const steps = Math.max(...data.runs.map((run) => run.steps.length));
const overlay = () => state.overlay.split("-")[0];
const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

// Numbers that Python deflated, as an array of a kind.
async function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// A colour for an age from 1 on: dark for young, yellow for old.
function ageColour(age) {
  const place = (oldest === 1 ? 0 : (Math.min(age, oldest) - 1) / (oldest - 1)) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((from, i) => Math.round(from + (place - low) * (VIRIDIS[low + 1][i] - from)))})`;
}

const decoded = new Map();
// A picture that the browser has decoded, or null until it has: the page is drawn again then.
function imageOf(uri) {
  if (!decoded.has(uri)) {
    const image = new Image();
    image.onload = draw;
    image.src = uri;
    decoded.set(uri, image);
  }
  const image = decoded.get(uri);
  return image.complete && image.naturalWidth ? image : null;
}

const greys = new Map();
// The same picture without its colours.
function greyOf(image) {
  if (!greys.has(image)) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.fill((pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3, i, i + 3);
    }
    context.putImageData(pixels, 0, 0);
    greys.set(image, canvas);
  }
  return greys.get(image);
}

// Of pictures [images][frames] the one that is looked at.
function pick(pictures) {
  const frames = pictures[clamp(state.image, pictures.length)];
  return frames[clamp(state.frame, frames.length)];
}

class RunView {
  constructor(run, card) {
    this.run = run;
    this.part = (name) => card.querySelector(name);
    this.canvas = this.part("canvas");
    this.cell = Math.max(1, Math.floor(LARGEST / Math.max(run.height, run.width)));
    this.canvas.width = this.cell * run.width;
    this.canvas.height = this.cell * run.height;
    this.tokens = run.grid.reduce((all, extent) => all * extent, 1);
    this.previewSteps = Object.keys(run.previews).map(Number).sort((a, b) => a - b);
    this.canvas.addEventListener("pointermove", (event) => look(this.at(event)));
    this.canvas.addEventListener("pointerdown", (event) => look(this.at(event)));
    this.canvas.addEventListener("pointerleave", () => look(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    for (const chart of card.querySelectorAll(".chart svg")) {
      chart.addEventListener("click", (event) => {
        const box = chart.getBoundingClientRect();
        go(Math.floor(((event.clientX - box.left) / box.width) * run.steps.length));
      });
    }
    this.bars = [...card.querySelectorAll("svg")].map((svg) => [...svg.querySelectorAll("rect")]);
  }

  async load() {
    this.ages = await unpack(this.run.ages, Uint8Array);
    this.clusters = [];
    for (const [key, found] of Object.entries(this.run.clusters)) {
      this.clusters.push({ key, maps: await unpack(found.maps, Uint16Array), ofStep: found.of_step });
    }
  }

  // The set of clusters that is asked for, of a policy that may have none or several.
  get shownClusters() { return this.clusters[Number(state.overlay.split("-")[1] ?? 0)]; }

  get step() { return clamp(state.step, this.run.steps.length); }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      row: clamp(Math.floor(((event.clientY - box.top) / box.height) * this.run.height), this.run.height),
      column: clamp(Math.floor(((event.clientX - box.left) / box.width) * this.run.width), this.run.width),
    };
  }

  key(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") look(null);
    else if (move) {
      const from = state.token ?? { row: -move[0], column: -move[1] };
      look({ row: clamp(from.row + move[0], this.run.height), column: clamp(from.column + move[1], this.run.width) });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // Index of a cell's token in the frame that is looked at, or null where the cell has none.
  token(row, column) {
    const { height, width, frames } = this.run;
    const token = (clamp(state.frame, frames) * height + row) * width + column;
    return row < height && column < width && token < this.tokens ? token : null;
  }

  age(step, token) {
    return this.ages[(step * this.run.images + clamp(state.image, this.run.images)) * this.tokens + token];
  }

  // The cluster of a token by a key's map at a step, or null.
  cluster(found, step, token) {
    const map = found.ofStep[step];
    if (map === null) return null;
    return found.maps[(map * this.run.images + clamp(state.image, this.run.images)) * this.tokens + token];
  }

  cells(visit) {
    for (let row = 0; row < this.run.height; row++) {
      for (let column = 0; column < this.run.width; column++) {
        const token = this.token(row, column);
        if (token !== null) visit(token, row, column);
      }
    }
  }

  draw(style) {
    const context = this.canvas.getContext("2d");
    const { run, step, cell } = this;
    const colour = (name) => style.getPropertyValue(name);
    const picture = this.background();
    const under = run.ofPicture ? picture : null;
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = false;
    context.fillStyle = colour("--raised");
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (under) context.drawImage(under, 0, 0, this.canvas.width, this.canvas.height);
    const paint = {
      computed: (token) => (this.age(step, token) ? [0.85, colour("--paper")] : null),
      age: (token) => (this.age(step, token) ? [0.75, ageColour(this.age(step, token))] : null),
      clusters: (token) => {
        const cluster = this.shownClusters ? this.cluster(this.shownClusters, step, token) : null;
        return cluster === null ? null : [0.75, CATEGORIES[cluster % CATEGORIES.length]];
      },
      none: () => null,
    }[overlay()];
    const grey = under && overlay() !== "none" ? greyOf(under) : null;
    const [across, down] = grey ? [grey.width / run.width, grey.height / run.height] : [0, 0];
    this.cells((token, row, column) => {
      const painted = paint(token);
      if (!painted && (under || overlay() === "none")) return;
      const box = [column * cell, row * cell, cell, cell];
      if (grey) context.drawImage(grey, column * across, row * down, across, down, ...box);
      [context.globalAlpha, context.fillStyle] = painted ?? [1, colour("--full")];
      if (!under) context.globalAlpha = 1;
      context.fillRect(...box);
      context.globalAlpha = 1;
    });
    if (overlay() !== "none" && cell >= FRAMED) this.borders(context, colour("--ink"));
    this.mark(context, colour("--mark"));
    this.text();
  }

  // Lines between the tokens that the step computed and those that it did not.
  borders(context, ink) {
    const { step, cell, run } = this;
    const computed = (row, column) => {
      const token = row < run.height && column < run.width ? this.token(row, column) : null;
      return token === null ? null : this.age(step, token) === 0;
    };
    context.strokeStyle = ink;
    context.lineWidth = Math.max(1, cell / 20);
    context.beginPath();
    this.cells((token, row, column) => {
      const own = computed(row, column);
      for (const [other, x, y] of [[computed(row, column + 1), 1, 0], [computed(row + 1, column), 0, 1]]) {
        if (other === null || other === own) continue;
        context.moveTo((column + x) * cell, (row + y) * cell);
        context.lineTo((column + 1) * cell, (row + 1) * cell);
      }
    });
    context.stroke();
  }

  // A frame around the token that is looked at.
  mark(context, colour) {
    const { cell } = this;
    if (!state.token || this.token(state.token.row, state.token.column) === null) return;
    context.strokeStyle = colour;
    context.lineWidth = Math.max(2, cell / 8);
    context.strokeRect(state.token.column * cell, state.token.row * cell, cell, cell);
  }

  // The picture under the tokens: the latest preview up to the step, else the first one, else the final picture.
  background() {
    const before = this.previewSteps.filter((step) => step <= this.step);
    this.previewed = before.length ? before[before.length - 1] : this.previewSteps[0];
    const pictures = this.previewed === undefined ? this.run.picture : this.run.previews[this.previewed];
    return pictures ? imageOf(pick(pictures)) : null;
  }

  text() {
    const { run, step } = this;
    const told = run.steps[step];
    const counts = { full: `all ${told.of} tokens`, pruned: `${told.tokens} of ${told.of} tokens`, skipped: "skipped, no tokens" };
    const over = step < state.step ? "ended at " : "";
    this.part(".state").textContent = `${over}step ${step}: ${counts[told.kind]}, ${told.seconds.toFixed(3)}\u00a0s`;
    let shown = "No picture was given: the tokens alone.";
    if (!run.ofPicture && run.picture) shown = "The tokens alone, in their own order.";
    else if (this.previewed !== undefined) shown = `Latents decoded after step ${this.previewed}.`;
    else if (run.picture) shown = "The final picture: no previews of steps were given.";
    if (overlay() === "clusters") shown += ` ${this.clusterText()}`;
    this.part(".preview").textContent = shown;
    this.part(".token").textContent = this.tokenText();
    for (const bars of this.bars) bars.forEach((bar, place) => bar.classList.toggle("now", place === step));
  }

  clusterText() {
    if (!this.shownClusters) return "This policy keeps no such clusters.";
    if (this.shownClusters.ofStep[this.step] === null) return "No clusters at this step: nothing was chosen.";
    return this.clusters.length > 1 ? `Clusters of ${this.shownClusters.key}.` : "";
  }

  // A token's history, in words.
  tokenText() {
    const { run, step } = this;
    if (!state.token) return "Point at a token to see when it was computed.";
    const { row, column } = state.token;
    const token = this.token(row, column);
    if (token === null) return "No token there.";
    const computed = run.steps.map((_, place) => place).filter((place) => this.age(place, token) === 0);
    const frame = run.frames > 1 ? `, frame ${clamp(state.frame, run.frames)}` : "";
    const name = run.ofPicture ? `Token ${token} (row ${row}, column ${column}${frame})` : `Token ${token}`;
    const last = computed.filter((place) => place <= step).pop();
    let now = "computed at this step";
    if (last === undefined) now = "not computed yet";
    else if (last < step) now = `reused since step ${last}, ${step - last} ${step - last === 1 ? "step" : "steps"} old`;
    const groups = this.clusters.map((found) => [found.key, this.cluster(found, step, token)]).filter(([, one]) => one !== null);
    const own = groups.map(([key, one]) => `; cluster ${one}${groups.length > 1 ? ` of ${key}` : ""}`).join("");
    return `${name}: ${now}${own}. Computed at ${computed.length === 1 ? "step" : "steps"} ${ranges(computed)}.`;
  }
}

// Whole numbers in order, those in a row drawn together: 0-7, 9, 13.
function ranges(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found[found.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}\u2013${to}`)).join(", ") || "none";
}

const cards = [...document.querySelectorAll(".run")];
const views = data.runs.map((run, place) => new RunView(run, cards[place]));

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const view of views) if (view.ages) view.draw(style);
  find("step").value = state.step;
  find("step-text").textContent = `step ${state.step} of 0\u2013${steps - 1}`;
  if (find("frame")) find("frame-text").textContent = `${state.frame} of 0\u2013${data.frames - 1}`;
}

function go(step) {
  state.step = clamp(step, steps);
  draw();
}

function look(token) {
  if (token?.row === state.token?.row && token?.column === state.token?.column) return;
  state.token = token;
  draw();
}

function legend() {
  const patch = (colour, text) => {
    const label = document.createElement("span");
    const square = document.createElement("i");
    square.style.background = colour;
    label.append(square, text);
    return label;
  };
  const scale = document.createElement("span");
  scale.className = "scale";
  for (let age = 1; age <= Math.min(oldest, 28); age++) {
    scale.append(patch(ageColour(1 + ((age - 1) * (oldest - 1)) / Math.max(1, Math.min(oldest, 28) - 1)), ""));
  }
  const pictured = data.runs.some((run) => run.ofPicture && (run.picture || Object.keys(run.previews).length));
  const own = pictured ? "In the picture's own colours" : "Blue";
  const shown = {
    computed: [`${own}: computed at the step. Pale: reused.`],
    age: [`${own}: computed at the step. Reused for 1`, scale, `${oldest} ${oldest === 1 ? "step" : "steps"}.`],
    clusters: ["A colour for each cluster that the step's tokens were chosen by (they repeat after 20). Within a frame: computed."],
    none: ["Pictures of the steps, where they were given."],
  }[overlay()];
  find("legend").replaceChildren(...shown);
}

// Before and after.
const sides = [...(data.dense ? [{ name: "plain model", picture: data.dense }] : []), ...data.runs.filter((run) => run.picture)];
function compare() {
  for (const [place, side] of ["left", "right"].entries()) {
    const image = find(`${side}-picture`);
    if (!image) continue;
    const chosen = sides[find(side) ? Number(find(side).value) : place];
    image.onload = () => image.classList.toggle("small", image.naturalWidth <= 256);
    image.src = pick(chosen.picture);
    image.alt = `Picture of ${chosen.name}`;
    if (find(`${side}-name`)) find(`${side}-name`).textContent = chosen.name;
  }
}

function listen(id, event, then) {
  if (find(id)) find(id).addEventListener(event, (happened) => then(happened.target));
}

let playing = null;
function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(() => go((state.step + 1) % steps), 350) : null;
  find("play").textContent = on ? "Stop" : "Play";
  find("play").setAttribute("aria-pressed", String(on));
}

listen("divider", "input", (slider) => find("compare").style.setProperty("--at", `${slider.value}%`));
listen("difference", "change", (box) => find("compare").classList.toggle("differing", box.checked));
listen("left", "change", compare);
listen("right", "change", compare);
listen("step", "input", (slider) => go(Number(slider.value)));
listen("before", "click", () => go(state.step - 1));
listen("after", "click", () => go(state.step + 1));
listen("play", "click", () => play(playing === null));
listen("image", "change", (choice) => { state.image = Number(choice.value); compare(); draw(); });
listen("frame", "input", (slider) => { state.frame = Number(slider.value); compare(); draw(); });
for (const radio of document.querySelectorAll("input[name=overlay]")) {
  radio.addEventListener("change", () => { state.overlay = radio.value; legend(); draw(); });
}
document.addEventListener("keydown", (event) => {
  const own = event.target.closest("input, select, summary, canvas");
  const to = { ArrowLeft: state.step - 1, ArrowRight: state.step + 1, Home: 0, End: steps - 1 }[event.key];
  if (to === undefined || (own && own.id !== "step" && own.type !== "checkbox") || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  go(to);
});
addEventListener("hashchange", () => go(Number(location.hash.slice(1)) || 0));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

async function start() {
  for (const view of views) await view.load();
  compare();
  legend();
  go(Number(location.hash.slice(1)) || 0); // run.html#12 opens at step 12
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = `This browser cannot show the page (it takes one of 2023 or newer): ${error.message}`;
  document.querySelector("main").prepend(note);
});

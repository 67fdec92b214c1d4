// The page of `dcgan-jax serve`: a photograph, the hole that is painted over it, and its completion.
// The server keeps nothing, so every request carries the photograph and the mask.

const at = (id) => document.getElementById(id);
const HOLE = "rgb(224, 36, 94)";

let file = null; // the photograph as it was opened
let mask = { drawn: [], first: null }; // strokes and changes; `first` is a mask that was opened
let region = null; // left, top, width, height in pixels of the photograph
let moved = false; // whether the region is placed, by the visitor or where the face was before it was painted over
let face = null; // the region of the face that was seen before anything was painted
let presets = {};
let busy = false;
let asked = 0; // counts the requests for a region; only the latest answer counts

const canvas = at("hole");
const pen = canvas.getContext("2d", { willReadFrequently: true });

// ---------------------------------------------------------------- requests

async function ask(path, form) {
  const answer = await fetch(path, form ? { method: "POST", body: form } : {});
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.problem);
  return content;
}

async function order(withMask = true) {
  const form = new FormData();
  form.append("photograph", file, file.name);
  if (withMask && isMissing()) form.append("mask", await maskFile(), "mask.png");
  form.append("prior", at("prior").value);
  form.append("preset", at("preset").value);
  form.append("seed", at("seed").value);
  if (moved && region) form.append("crop", region.join(","));
  if (at("smooth").checked) form.append("elsewhere", "smooth");
  return form;
}

function say(note = "", problem = "") {
  at("note").textContent = note;
  at("problem").textContent = problem;
}

// ---------------------------------------------------------------- photograph and mask

function load(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the browser cannot show this picture"));
    image.src = source;
  });
}

async function openPhotograph(chosen) {
  try {
    const form = new FormData();
    form.append("photograph", chosen, chosen.name);
    const shown = await ask("/photograph", form);
    const image = await load(shown.picture);
    file = chosen;
    at("photograph").src = shown.picture;
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    mask = { drawn: [], first: shown.mask ? await load(shown.mask) : null };
    region = face = null;
    moved = false;
    for (const id of ["stage", "tools"]) at(id).hidden = false;
    at("drop").hidden = true;
    at("result").hidden = true;
    const hole = shown.mask ? "What is transparent is missing." : "";
    say([shown.note, hole].filter(Boolean).join("; "));
    draw();
    await findRegion();
  } catch (error) {
    say("", error.message);
  }
}

async function openMask(chosen) {
  try {
    if (!file) throw new Error("open a photograph first");
    const form = new FormData();
    form.append("mask", chosen, chosen.name);
    const found = await ask("/mask", form);
    if (found.width !== canvas.width || found.height !== canvas.height) {
      const sizes = `${found.width}x${found.height}, the photograph ${canvas.width}x${canvas.height}`;
      throw new Error(`the mask has ${sizes} (width, height): give a mask of the photograph's size`);
    }
    mask = { drawn: [], first: await load(found.mask) };
    const most = found.missing > 0.7 * canvas.width * canvas.height;
    say(found.note || (most ? "Most of the photograph is missing: white means missing. Press Invert if it is not so." : ""));
    draw();
    await findRegion();
  } catch (error) {
    say("", error.message);
  }
}

// Draws all changes anew, so that undo leaves the last one out.
function draw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (mask.first) {
    pen.drawImage(mask.first, 0, 0);
    change((white) => white);
  }
  mask.drawn.forEach(drawOne);
  at("undo").disabled = !mask.drawn.length;
  refresh();
}

function drawOne(one) {
  if (one.kind === "clear") pen.clearRect(0, 0, canvas.width, canvas.height);
  else if (one.kind === "invert") change((_, painted) => !painted);
  else stroke(one, 0);
}

// Sets each pixel to painted or clear. `decide` gets whether it is white, and whether it is painted.
function change(decide) {
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  const values = pixels.data;
  for (let i = 0; i < values.length; i += 4) {
    const painted = values[i + 3] >= 128;
    const missing = decide(painted && values[i + 1] >= 128, painted);
    values.set(missing ? [224, 36, 94, 255] : [0, 0, 0, 0], i);
  }
  pen.putImageData(pixels, 0, 0);
}

function stroke(one, from) {
  pen.globalCompositeOperation = one.kind === "eraser" ? "destination-out" : "source-over";
  pen.strokeStyle = pen.fillStyle = HOLE;
  pen.lineWidth = one.width;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  const points = one.points.slice(Math.max(0, from - 1));
  pen.moveTo(...points[0]);
  points.forEach((point) => pen.lineTo(...point));
  if (points.length === 1) pen.lineTo(points[0][0] + 0.01, points[0][1]);
  pen.stroke();
  pen.globalCompositeOperation = "source-over";
}

function isMissing() {
  const values = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 3; i < values.length; i += 4) if (values[i] >= 128) return true;
  return false;
}

// The mask as a PNG: white = missing, black = known.
function maskFile() {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  const context = copy.getContext("2d");
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  const values = pixels.data;
  for (let i = 0; i < values.length; i += 4) {
    const level = values[i + 3] >= 128 ? 255 : 0;
    values.set([level, level, level, 255], i);
  }
  context.putImageData(pixels, 0, 0);
  return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
}

async function refresh() {
  const missing = file !== null && isMissing();
  at("complete").disabled = busy || !missing;
  at("find").disabled = !file;
  const link = at("save-mask");
  link.hidden = !missing;
  if (link.href) URL.revokeObjectURL(link.href);
  if (missing) link.href = URL.createObjectURL(await maskFile());
}

// ---------------------------------------------------------------- brush

let current = null;

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  const width = (at("size").value / 100) * Math.max(canvas.width, canvas.height);
  current = { kind: tool(), points: [place(event)], width };
  stroke(current, 0);
});
canvas.addEventListener("pointermove", (event) => {
  if (!current) return;
  const known = current.points.length;
  for (const one of event.getCoalescedEvents?.() ?? [event]) current.points.push(place(one));
  if (current.points.length > known) stroke(current, known);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (!current) return;
    mask.drawn.push(current);
    current = null;
    draw();
    findRegion();
  });
}

const tool = () => document.querySelector("input[name=tool]:checked").value;
for (const input of document.querySelectorAll("input[name=tool]")) {
  input.addEventListener("change", () => at("stage").classList.toggle("moving", tool() === "region"));
}
at("undo").addEventListener("click", () => (mask.drawn.pop(), draw(), findRegion()));
at("clear").addEventListener("click", () => (mask.drawn.push({ kind: "clear" }), draw(), findRegion()));
at("invert").addEventListener("click", () => (mask.drawn.push({ kind: "invert" }), draw(), findRegion()));

// ---------------------------------------------------------------- region

async function findRegion() {
  if (!file || moved) return showRegion();
  const mine = ++asked;
  try {
    const found = await ask("/region", await order());
    if (mine !== asked) return;
    const hidden = found.note.includes("no face was found");
    if (!hidden && !isMissing()) face = found.region;
    moved = hidden && face !== null;
    region = moved ? face : found.region;
    say(moved ? "The face is hidden now: its region from before is kept." : found.note);
  } catch (error) {
    if (mine !== asked) return;
    region = null;
    say("", error.message);
  }
  showRegion();
}

function showRegion() {
  const frame = at("region");
  showCommand();
  frame.hidden = !region;
  if (!region) return;
  const [left, top, width, height] = region;
  frame.style.left = `${(100 * left) / canvas.width}%`;
  frame.style.top = `${(100 * top) / canvas.height}%`;
  frame.style.width = `${(100 * width) / canvas.width}%`;
  frame.style.height = `${(100 * height) / canvas.height}%`;
}

// The same completion by the command, with the mask as it is saved.
function showCommand() {
  if (!file || !region) return at("command").replaceChildren();
  const options = ["--images", file.name, "--masks", "mask.png", "--prior", at("prior").value];
  if (at("preset").value !== "default") options.push("--preset", at("preset").value);
  options.push("--seed", at("seed").value, "--crop", region.join(","));
  if (at("smooth").checked) options.push("--elsewhere", "smooth");
  const words = options.map((word) => (/^[\w./:,+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`));
  at("command").textContent = `dcgan-jax inpaint ${words.join(" ")} --out out/`;
}
for (const id of ["prior", "preset", "seed", "smooth"]) at(id).addEventListener("change", showCommand);

const limit = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
let grip = null;

at("region").addEventListener("pointerdown", (event) => {
  at("region").setPointerCapture(event.pointerId);
  grip = { start: place(event), region: [...region], resize: event.target === at("corner") };
});
at("region").addEventListener("pointermove", (event) => {
  if (!grip) return;
  const [x, y] = place(event);
  const [left, top, width, height] = grip.region;
  const [dx, dy] = [x - grip.start[0], y - grip.start[1]];
  if (grip.resize) {
    const most = Math.min(canvas.width - left, ((canvas.height - top) * width) / height);
    const wide = Math.max(8, limit(width + Math.max(dx, (dy * width) / height), most));
    region = [left, top, wide, Math.min(Math.round((wide * height) / width), canvas.height - top)];
  } else {
    region = [limit(left + dx, canvas.width - width), limit(top + dy, canvas.height - height), width, height];
  }
  moved = true;
  showRegion();
});
at("region").addEventListener("pointerup", () => (grip = null));
at("find").addEventListener("click", () => ((moved = false), findRegion()));

// ---------------------------------------------------------------- completion

async function complete() {
  busy = true;
  refresh();
  at("bar").hidden = false;
  at("problem").textContent = "";
  const begun = performance.now();
  let words = "";
  const clock = setInterval(() => {
    at("stage-name").textContent = `${words} ${((performance.now() - begun) / 1000).toFixed(0)} s`;
  }, 200);
  try {
    const answer = await fetch("/complete", { method: "POST", body: await order() });
    if (!answer.ok) throw new Error((await answer.json()).problem);
    for await (const line of linesOf(answer.body)) {
      if (line.stage === "waiting") words = `Waiting, ${line.before} before you.`;
      if (line.stage === "compiling") words = "Compiling and searching (only the first time takes so long).";
      if (line.stage === "searching") words = "Searching.";
      if (line.stage === "failed") throw new Error(line.problem);
      if (line.stage === "done") {
        await show(line);
        say(line.note);
        words = "Done in";
      }
    }
  } catch (error) {
    words = "";
    at("problem").textContent = error.message;
  }
  clearInterval(clock);
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  at("stage-name").textContent = words === "Done in" ? `${words} ${seconds} s` : "";
  at("bar").hidden = true;
  busy = false;
  refresh();
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// The completed region of a picture, for the choices.
async function detail(source, [left, top, width, height]) {
  const part = document.createElement("canvas");
  part.width = part.height = 128;
  part.getContext("2d").drawImage(await load(source), left, top, width, height, 0, 0, 128, 128);
  return part;
}

async function show(line) {
  at("result").hidden = false;
  at("before").src = at("photograph").src;
  at("slider").value = 100;
  compare();
  const several = line.images.length > 1;
  const choices = line.images.map((source, i) => [`Choice ${i + 1}`, source]);
  if (line.mean) choices.push(["Mean of all", line.mean]);
  at("choices").replaceChildren();
  for (const [name, source] of several ? choices : []) {
    const button = document.createElement("button");
    button.append(await detail(source, line.region));
    button.title = name;
    button.setAttribute("aria-label", name);
    button.type = "button";
    button.addEventListener("click", () => choose(source, button));
    at("choices").append(button);
  }
  choose(line.images[0], at("choices").firstElementChild);
  at("result").scrollIntoView({ behavior: "smooth" });
}

function choose(source, button) {
  at("after").src = source;
  at("download").href = source;
  at("download").download = `${file.name.replace(/\.[^.]*$/, "")}.png`;
  for (const one of at("choices").children) one.setAttribute("aria-pressed", one === button);
}

function compare() {
  at("before").style.clipPath = `inset(0 ${at("slider").value}% 0 0)`;
}
at("slider").addEventListener("input", compare);
at("back").addEventListener("click", () => (at("result").hidden = true));
at("complete").addEventListener("click", complete);

// ---------------------------------------------------------------- opening

at("open").addEventListener("change", (event) => event.target.files.length && openPhotograph(event.target.files[0]));
at("open-mask").addEventListener("change", (event) => event.target.files.length && openMask(event.target.files[0]));
for (const id of ["open", "open-mask"]) at(id).addEventListener("click", (event) => (event.target.value = ""));
at("sample").addEventListener("click", async () => {
  const content = await (await fetch("/static/sample.jpg")).blob();
  openPhotograph(new File([content], "sample.jpg", { type: "image/jpeg" }));
});
addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dropping")));
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) openPhotograph(event.dataTransfer.files[0]);
});

function offerPresets() {
  const chosen = at("preset").value;
  at("preset").replaceChildren(...presets[at("prior").value].map((name) => new Option(name, name)));
  if (presets[at("prior").value].includes(chosen)) at("preset").value = chosen;
}
at("prior").addEventListener("change", () => (offerPresets(), findRegion()));

const options = await ask("/options");
presets = options.presets;
at("prior").replaceChildren(...options.priors.map((name) => new Option(name, name)));
offerPresets();

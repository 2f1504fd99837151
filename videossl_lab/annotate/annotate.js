// The face of annotate.Annotator: it draws `state` and `clip`, and sends what was pressed. It decides nothing.

function element(parent, tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

const percent = (value) => `${Math.round(value)} %`;

// Accuracy in percent over the number of training labels: a line, its last value, and all of it in words.
function drawCurve(parent, points) {
  parent.replaceChildren();
  parent.hidden = !points.length;
  if (!points.length) return;
  const [labels, accuracy] = points.at(-1);
  const all = points.map(([n, value]) => `${n} labels ${percent(value)}`).join(", ");
  parent.setAttribute("aria-label", `Cross-validated accuracy on the training labels: ${all}`);
  const at = points.map(([n, value]) => [(200 * n) / labels, 44 - 0.4 * value]);
  const lines = `<path class="frame" d="M0 4V44H204M0 24H204"/><polyline points="${at.join(" ")}"/>`;
  const [x, y] = at.at(-1);
  parent.innerHTML = `<svg viewBox="-2 0 208 48" aria-hidden="true">${lines}<circle cx="${x}" cy="${y}" r="3"/></svg>`;
  element(parent, "span", "", `${percent(accuracy)} right with ${labels} training labels, by cross-validation`);
}

function render({ model, el }) {
  const root = element(el, "div", "videossl-desk");
  root.tabIndex = 0; // keys are heard when the focus is here or on anything inside, and never elsewhere
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Label videos");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes 1 to 6, s and others
  const classes = model.get("classes");

  const left = element(root, "div", "film");
  const video = element(left, "video", "");
  Object.assign(video, { loop: true, muted: true, controls: true, playsInline: true });
  video.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const name = element(left, "div", "name");
  const guess = element(left, "div", "guess");
  guess.setAttribute("role", "status");
  const why = element(left, "div", "why");

  const right = element(root, "div", "choice");
  const rows = element(right, "div", "classes");
  const lines = {};
  const buttons = {};
  const keys = {};
  function button(parent, label, key, press) {
    const made = element(parent, "button", "", key ? `${label} (${key})` : label);
    made.type = "button";
    made.onclick = press;
    if (key) keys[key] = press;
    return made;
  }
  for (const [label, key] of classes) {
    buttons[label] = button(rows, label, key, () => send("label", label));
    const bar = element(rows, "div", "bar");
    bar.setAttribute("aria-hidden", "true"); // the words beside it say the same
    lines[label] = [element(bar, "span", "train"), element(bar, "span", "test"), element(rows, "span", "count")];
  }
  const tools = element(right, "div", "tools");
  button(tools, "undo", "u", () => send("undo"));
  button(tools, "skip", "s", () => send("skip"));
  keys.Backspace = keys.u;
  const rest = element(tools, "span", "rest");
  const curve = element(right, "div", "curve");
  curve.setAttribute("role", "img");
  const message = element(right, "div", "message");
  message.setAttribute("role", "status");
  const problem = element(right, "div", "problem");
  problem.setAttribute("role", "alert");
  const last = classes.filter(([, key]) => key).at(-1)?.[1];
  element(right, "div", "hint", `Keys work when this box is framed: click into it, then Enter for the guess, 1 to ${last}, s, u.`);

  let waiting = null;
  function send(action, label = "") {
    if (waiting) return; // one press, one answer
    model.send({ action, label, video: model.get("state").video });
    waiting = setTimeout(() => {
      problem.textContent = "No answer yet: the kernel is busy, or was restarted (then run the cells again).";
    }, 2000);
    root.setAttribute("aria-busy", "true");
    root.focus({ preventScroll: true });
  }

  root.addEventListener("keydown", (event) => {
    const accept = event.key === "Enter" && event.target === root; // on a button, Enter presses that
    const [guessed] = model.get("state").guess;
    const press = accept && guessed ? () => send("label", guessed[0]) : keys[event.key];
    if (!press || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) press();
  });

  let url = null;
  function play() {
    const clip = model.get("clip");
    if (url) URL.revokeObjectURL(url);
    url = clip?.byteLength ? URL.createObjectURL(new Blob([clip])) : null;
    if (url) video.src = url;
    else video.removeAttribute("src"), video.load();
  }

  function draw() {
    clearTimeout(waiting);
    waiting = null;
    root.removeAttribute("aria-busy");
    const state = model.get("state");
    video.setAttribute("aria-label", state.video ? `Clip of ${state.video}` : "No clip");
    name.textContent = state.video || "Every video has a label.";
    const [guessed] = state.guess;
    guess.textContent = guessed ? `Guess: ${guessed[0]}, ${percent(100 * guessed[1])}. Enter accepts it.` : "";
    why.textContent = state.why ? `Why this one: ${state.why}` : "";
    message.textContent = state.message;
    problem.textContent = state.problem;
    const sure = guessed ? `; ${state.sure} of them sure (${percent(100 * state.delta)} or more)` : "";
    rest.textContent = `${state.left} without a label${sure}`;
    drawCurve(curve, state.curve);
    const most = Math.max(8, ...Object.values(state.counts).map(([a, b]) => a + b));
    for (const [label, [train, test, count]] of Object.entries(lines)) {
      const [a, b] = state.counts[label];
      train.style.width = `${(100 * a) / most}%`;
      test.style.width = `${(100 * b) / most}%`;
      count.textContent = `${a} + ${b} held out`;
      buttons[label].classList.toggle("guessed", label === guessed?.[0]);
    }
  }

  model.on("change:clip", play);
  model.on("change:state", draw);
  play();
  draw();
  return () => {
    clearTimeout(waiting);
    if (url) URL.revokeObjectURL(url);
    model.off("change:clip", play);
    model.off("change:state", draw);
  };
}

export default { render };

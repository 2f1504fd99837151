// One stop of the Tab key; the arrow keys go to the nearest entry in their direction.
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const middle = element => {
  const box = element.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};

function render({ model, el }) {
  el.classList.add("confusion");
  const buttons = () => [...el.querySelectorAll("button")];
  const stop = chosen => buttons().forEach(b => { b.tabIndex = b === chosen ? 0 : -1; });
  const draw = () => { el.innerHTML = model.get("html"); stop(buttons()[0]); };
  model.on("change:html", draw);
  draw();
  el.addEventListener("click", event => {
    const b = event.target.closest("button");
    if (b) { stop(b); model.send({ true: b.dataset.true, predicted: b.dataset.predicted }); }
  });
  el.addEventListener("keydown", event => {
    const b = event.target.closest("button"), way = WAYS[event.key];
    if (!b || event.key === "Tab") return;
    event.stopPropagation();  // or JupyterLab goes to another cell
    if (!way) return;
    event.preventDefault();
    const [x, y] = middle(b);
    const far = other => {
      const [u, v] = middle(other), along = (u - x) * way[0] + (v - y) * way[1];
      const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
      return along > 1 ? along + 4 * aside : Infinity;
    };
    const next = buttons().reduce((best, other) => far(other) < far(best) ? other : best, b);
    stop(next);
    next.focus();
  });
}

export default { render };

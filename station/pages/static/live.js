// The live page: tiles follow the server's events; keys pause, show the heat map and make a tile large.
const STRIP = 50;
const ago = (seconds) =>
  seconds < 60 ? _("%(seconds)s s ago", { seconds: Math.max(0, Math.floor(seconds)) })
    : seconds < 5400 ? _("%(minutes)s min ago", { minutes: Math.floor(seconds / 60) })
    : _("%(hours)s h ago", { hours: numeral(Math.floor(seconds / 3600)) });

const grid = document.getElementById("tiles");
const tiles = new Map([...grid.querySelectorAll(".tile")].map((element) => [element.dataset.camera, { element, strip: [] }]));
let skew = 0;  // server's clock less this one, ms
let isPaused = false;
let latest = null;

const draw = (tile, shown) => {
  if (!shown || tile.frame === shown.frame_id + shown.size) return;
  tile.frame = shown.frame_id + shown.size;
  const figure = tile.element.querySelector(".patch");
  figure.hidden = true;
  figure.classList.toggle("left", Boolean(shown.size) && shown.boxes.some(([x, , width]) => x + width / 2 > shown.size[0] / 2));  // beside the region
  const view = tile.element.querySelector(".view svg");
  const none = tile.element.querySelector(".none");
  if (!shown.size) {
    view.replaceChildren();
    tile.element.dataset.shape = "wide";
    none.textContent = _("the picture of this frame is not at hand");
    return;
  }
  const [width, height] = shown.size;
  const image = node("image", { href: `/live/${encodeURIComponent(shown.frame_id)}.jpg`, width, height });
  const parts = [image];
  if (shown.decision !== "accept") {
    const heat = node("image", { class: "heat-layer", width, height, preserveAspectRatio: "none" });
    const wanted = `/defects/${encodeURIComponent(shown.frame_id)}/layer.png`;
    let tries = 0;
    const load = async () => {
      const answer = await fetch(wanted);
      const isShown = () => tile.frame === shown.frame_id + shown.size;
      if (answer.ok) {
        heat.setAttribute("href", wanted);
        goodPatch(shown.frame_id, isShown, (patch) => patch.state !== "pending" && drawGoodPatch(figure, patch));
      } else if (++tries < 8 && tile.frame === shown.frame_id + shown.size) setTimeout(load, 1500);
    };
    load();  // the heat map comes by way of the store, some seconds after the verdict
    parts.push(heat);
    for (const [x, y, w, h] of shown.boxes)
      for (const kind of ["back", "front"]) parts.push(node("rect", { class: kind, x, y, width: w, height: h }));
  }
  const loader = new Image();  // the old picture stays until the new one is here
  loader.onload = () => {
    tile.element.dataset.shape = width < 1.35 * height ? "tall" : "wide";
    view.setAttribute("viewBox", `0 0 ${width} ${height}`);
    view.replaceChildren(...parts);
    none.textContent = "";
  };
  loader.src = image.getAttribute("href");
};

const drawStrip = (tile) => {
  const cells = tile.strip.map(([decision, frame, score, at]) => {
    const cell = document.createElement("a");
    cell.title = _("%(decision)s, score %(score)s, %(at)s", { decision: wordOf("decision", decision), score: numeral(score, 2), at: clockOf(new Date(at)) });
    cell.href = decision === "accept" ? `/review?frame=${encodeURIComponent(frame)}` : `/defects/${encodeURIComponent(frame)}`;
    if (decision === "accept") cell.tabIndex = -1;  // fifty stops a camera would bury the others
    cell.setAttribute("aria-label", cell.title);
    const picture = node("svg", { viewBox: "0 0 12 24", preserveAspectRatio: "none", class: decision });
    const d = { accept: "M0 15h12v9H0z", review: "M6 5l6 19H0z", reject: "M0 0h12v24H0z" }[decision] || "M6 2l6 11-6 11L0 13z";
    picture.append(node("path", { d }));
    cell.append(picture);
    const item = document.createElement("li");
    item.append(cell);
    return item;
  });
  tile.element.querySelector(".strip").replaceChildren(...cells);
};

const lines = (...texts) =>
  texts.map((text) => {
    const line = document.createElement("span");
    line.textContent = text;
    return line;
  });

const drawFact = (tile) => {
  const { kind, shown, words, since } = tile.state;
  const fact = tile.element.querySelector(".fact");
  tile.element.dataset.kind = kind;
  tile.element.querySelector(".scene").textContent = tile.state.scene;
  const word = fact.querySelector(".word");
  const aside = fact.querySelector(".aside");
  if (kind === "live" && shown) {
    if (tile.element.dataset.decision !== shown.decision) {
      tile.element.dataset.decision = shown.decision;
      fact.querySelector("svg").replaceChildren(...shape(shown.decision));
    }
    word.textContent = wordOf("decision", shown.decision).replace("-", " ");
    aside.replaceChildren(...lines(_("score %(score)s", { score: numeral(shown.score, 2) }), ago((Date.now() + skew - new Date(shown.captured_at)) / 1000)));
  } else {
    delete tile.element.dataset.decision;
    fact.querySelector("svg").replaceChildren(node("path", { d: "M5 4h5v16H5zM14 4h5v16h-5z", fill: "currentColor" }));
    const last = since ? new Date(since) : null;
    const isToday = last && last.toDateString() === new Date().toDateString();
    word.textContent = words.replace("{since}", last ? (isToday ? clockOf(last).slice(0, 5) : minuteOf(last)) : "");
    aside.replaceChildren(...lines("", last ? ago((Date.now() + skew - last) / 1000) : ""));
  }
};

const apply = (state) => {
  skew = new Date(state.now) - Date.now();
  const problem = document.getElementById("problem");
  if (problem.textContent !== (state.problem || "")) problem.textContent = problem.title = state.problem || "";
  for (const fresh of state.tiles) {
    const tile = tiles.get(fresh.camera);
    if (!tile) return location.reload();  // a camera that nobody has configured
    const changed = tile.state && fresh.kind === "live" && fresh.shown && tile.state.shown && fresh.shown.frame_id !== tile.state.shown.frame_id;
    tile.state = fresh;
    draw(tile, fresh.shown);
    drawFact(tile);
    if (fresh.strip.length) {
      tile.strip = [...tile.strip, ...fresh.strip].slice(-STRIP);
      drawStrip(tile);
    }
    if (changed && fresh.shown.decision === "reject") document.getElementById("said").textContent = `${fresh.camera}: ${wordOf("decision", "reject")}`;
  }
};
const merge = (before, state) => {  // while paused: the strips grow, the rest is replaced
  if (!before) return state;
  const strips = new Map(before.tiles.map((tile) => [tile.camera, tile.strip]));
  return { ...state, tiles: state.tiles.map((tile) => ({ ...tile, strip: [...(strips.get(tile.camera) || []), ...tile.strip].slice(-STRIP) })) };
};

apply(JSON.parse(grid.dataset.state));
const source = new EventSource(document.body.dataset.live);
source.onmessage = (event) => {
  document.body.classList.remove("stale");
  const state = JSON.parse(event.data);
  if (isPaused) latest = merge(latest, state);
  else apply(state);
};
source.onopen = () => tiles.forEach((tile) => (tile.strip = []));  // the first event holds whole strips
source.onerror = async () => {
  document.body.classList.add("stale");
  const answer = await fetch("/api/live").catch(() => null);
  if (answer && answer.status === 401) location.href = "/login?next=%2F";
};
setInterval(() => !isPaused && tiles.forEach((tile) => tile.state && drawFact(tile)), 1000);

const pause = document.getElementById("pause");
const setPause = (wanted) => {
  isPaused = wanted;
  pause.setAttribute("aria-pressed", wanted);
  document.body.classList.toggle("paused", wanted);
  if (!wanted && latest) apply(latest);
  latest = null;
};
const heat = document.getElementById("heat");
const setHeat = (wanted) => {
  heat.setAttribute("aria-pressed", wanted);
  grid.classList.toggle("no-heat", !wanted);
};
const setFull = (element) => {
  const wanted = element && !element.classList.contains("full");
  grid.querySelectorAll(".full").forEach((other) => other.classList.remove("full"));
  if (wanted) element.classList.add("full");
  grid.classList.toggle("has-full", Boolean(wanted));
};
pause.addEventListener("click", () => setPause(!isPaused));
heat.addEventListener("click", () => setHeat(heat.getAttribute("aria-pressed") !== "true"));
grid.addEventListener("click", (event) => event.target.closest("a") || setFull(event.target.closest(".tile")));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const all = [...tiles.values()].map((tile) => tile.element);
  if (event.key === "p") setPause(!isPaused);
  else if (event.key === "h") setHeat(heat.getAttribute("aria-pressed") !== "true");
  else if (event.key === "Escape") setFull(null);
  else if (event.key === "Enter" && event.target.classList.contains("tile")) setFull(event.target);
  else if (/^[1-9]$/.test(event.key) && all[event.key - 1]) setFull(all[event.key - 1]);
});

// The shapes of decisions, and pictures with their heat map and boxes: for the live page and the review page.
const SVG = "http://www.w3.org/2000/svg";
// A shape for each decision: a disc with a tick, a triangle, an octagon with a cross, a diamond with a question mark.
const SHAPES = {
  accept: ["M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22z", "M6.5 12.5l4 4 7-8"],
  review: ["M12 1.5L23.5 22H.5z", "M12 9v6M12 17.6v1.6"],
  reject: ["M7.5 1h9L23 7.5v9L16.5 23h-9L1 16.5v-9z", "M7.5 7.5l9 9M16.5 7.5l-9 9"],
  "unknown-product": ["M12 .8L23.2 12 12 23.2.8 12z", "M9.3 9.5a2.7 2.7 0 1 1 3.9 2.4c-.9.5-1.2 1-1.2 2M12 16.4v1.4"],
};
const node = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const shape = (decision) => {
  const [outline, sign] = SHAPES[decision] || SHAPES["unknown-product"];
  return [
    node("path", { d: outline, fill: "currentColor" }),
    node("path", { d: sign, fill: "none", stroke: "var(--back, var(--card))", "stroke-width": 2.6, "stroke-linecap": "round" }),
  ];
};
// The good patch that a frame's worst place was compared with: it is made when it is asked for, which takes a while.
const goodPatch = async (frame, isWanted, show) => {
  for (let tries = 0; tries < 40 && isWanted(); ++tries) {
    const answer = await fetch(`/api/v1/frames/${encodeURIComponent(frame)}/good-patch`).catch(() => null);
    if (!answer || !answer.ok || !isWanted()) return;
    const patch = await answer.json();
    show(patch);
    if (patch.state !== "pending") return;
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
};
const drawGoodPatch = (figure, patch) => {
  const image = figure.querySelector("img");
  if (patch.picture) image.src = `/api/v1${patch.picture}`;
  image.hidden = !patch.picture;
  figure.querySelector("figcaption").textContent = figure.title = patch.words;
  figure.hidden = false;
};

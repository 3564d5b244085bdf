// The page of a defect: its shape, the heat map's switch, and a key for each button.
const desk = document.querySelector(".desk");
const sign = desk.querySelector("[data-shape]");
sign.replaceChildren(...shape(sign.dataset.shape));
const heat = document.getElementById("heat");
const toggleHeat = () => {
  const wanted = heat.getAttribute("aria-pressed") !== "true";
  heat.setAttribute("aria-pressed", wanted);
  desk.classList.toggle("no-heat", !wanted);
};
heat.addEventListener("click", toggleHeat);
const click = (selector) => () => document.querySelector(selector)?.click();
for (const image of desk.querySelectorAll('image[href^="/pictures/"]'))
  image.addEventListener("error", () => {
    const said = document.createElement("p");
    said.className = "aside";
    said.textContent = _("The picture cannot be loaded: this is its heat map alone.");
    desk.querySelector(".view").append(said);
  });
const KEYS = {
  h: toggleHeat, r: click("[data-judgement=real]"), f: click("[data-judgement=false]"), u: click("[data-judgement=unsure]"),
  z: click("#undo"), arrowleft: click("a[rel=prev]"), arrowright: click("a[rel=next]"),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape" && event.target.closest("input")) event.target.blur();
  if (event.target.closest("input, select, textarea")) return;
  const work = KEYS[event.key.toLowerCase()];
  if (!work) return;
  event.preventDefault();
  work();
});
const good = document.getElementById("good");
goodPatch(good.dataset.frame, () => true, (patch) => drawGoodPatch(good, patch));

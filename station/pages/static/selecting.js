// Ticking pictures and classes: how many are chosen, all in between with Shift, and the search field by its key.
const chosen = document.getElementById("chosen");
if (chosen) {
  const ticks = [...document.querySelectorAll('input[type=checkbox][form="chosen"]')];
  const said = chosen.querySelector("[data-count]");
  const words = said.textContent;
  const least = chosen.action.endsWith("/merge") ? 2 : 1;
  let last = null;
  const count = () => {
    const number = ticks.filter((tick) => tick.checked).length;
    said.textContent = !number ? words
      : said.dataset.count === "classes" ? ngettext("%(number)s class chosen", "%(number)s classes chosen", number)
      : said.dataset.count === "regions" ? ngettext("%(number)s region chosen", "%(number)s regions chosen", number)
      : ngettext("%(number)s member chosen", "%(number)s members chosen", number);
    for (const button of chosen.querySelectorAll("button")) button.disabled = number < least;
  };
  for (const tick of ticks)
    tick.addEventListener("click", (event) => {
      if (event.shiftKey && last) {
        const [first, end] = [ticks.indexOf(last), ticks.indexOf(tick)].sort((a, b) => a - b);
        for (const between of ticks.slice(first, end + 1)) between.checked = tick.checked;
      }
      last = tick;
      count();
    });
  addEventListener("pageshow", count);  // a browser may bring back what was ticked
  count();
}
const filters = document.getElementById("filters");
filters?.addEventListener("change", (event) => event.target.matches("select, [type=checkbox]") && filters.requestSubmit());
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const search = document.getElementById("search");
  if (!search) return;
  event.preventDefault();
  search.select();
});

"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const studies = all("section.study"), index = document.querySelector("#index"), nav = document.querySelector("nav");
  root.classList.add("js");

  // Which study is shown: the address says it, so that back, forward and links work.
  const order = () => index ? all("tbody tr:not([hidden]) th a", index).map(a => a.hash.slice(1)) : studies.map(s => s.id);
  const show = () => {
    const wanted = location.hash.slice(1), study = studies.find(s => s.id === wanted) || (index ? null : studies[0]);
    if (index) index.hidden = Boolean(study);
    for (const s of studies) s.hidden = s !== study;
    nav.hidden = !index || !study;
    if (study && index) {
      const ids = order(), at = ids.indexOf(study.id);
      nav.querySelector(".place").textContent = at < 0 ? "" : `Study ${at + 1} of ${ids.length}`;
    }
    scrollTo(0, 0);
  };
  const go = step => {
    const ids = order(), at = ids.indexOf(location.hash.slice(1));
    const next = at < 0 ? ids[step > 0 ? 0 : ids.length - 1] : ids[at + step];
    if (next) location.hash = next;
  };
  addEventListener("hashchange", show);
  all("nav [data-go]").forEach(b => b.addEventListener("click", () => go(Number(b.dataset.go))));
  addEventListener("keydown", event => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey || !index) return;
    if (event.key === "ArrowRight") go(1);
    else if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "Escape") location.hash = "index";
  });

  // The viewer of one study: levels, heatmaps, and regions tied to their sentences.
  for (const study of studies) {
    const viewer = study.querySelector(".viewer");
    if (!viewer) continue;
    const slider = viewer.querySelector("[type=range]");
    let pinned = null;
    const setLevel = level => {
      slider.value = level;
      viewer.querySelector("output").textContent = `${Number(level) + 1} of ${Number(slider.max) + 1}`;
      all(".axial, .level-line", viewer).forEach(e => e.classList.toggle("here", e.dataset.level === String(level)));
    };
    const focus = (region, jump) => {
      all("[data-r]", study).forEach(e => e.classList.toggle("on", e.dataset.r === region));
      viewer.classList.toggle("focused", region !== null);
      if (region === null) return;
      const row = study.querySelector(`.region[data-r="${region}"]`), best = row && row.dataset.level;
      if (best && (jump || !viewer.querySelector(`.axial.here [data-r="${region}"]`))) setLevel(best);
    };
    const pin = region => { pinned = pinned === region ? null : region; focus(pinned, true); };
    if (slider) {
      slider.addEventListener("input", () => setLevel(slider.value));
      setLevel(viewer.dataset.level);
    }
    for (const choice of all("[type=radio]", viewer)) {  // which heatmap is laid over the image
      choice.addEventListener("change", () =>
        all("[data-heat]", viewer).forEach(e => e.classList.toggle("here", e.dataset.heat === choice.value)));
    }
    for (const part of all("[data-r]", study)) {
      const region = part.dataset.r;
      part.addEventListener("mouseenter", () => pinned === null && focus(region, false));
      part.addEventListener("mouseleave", () => pinned === null && focus(null));
      part.addEventListener("click", () => pin(region));
      if (part.tabIndex === 0 && part.matches("li")) {
        part.addEventListener("keydown", event => { if (event.key === "Enter") pin(region); });
      }
    }
  }

  // The index: sorting by any column, the worst and the best at hand.
  if (index) {
    const body = index.querySelector("tbody"), heads = all("thead th", index);
    const value = (row, column) => {
      const cell = row.cells[column];
      return "v" in cell.dataset ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent;
    };
    const sort = (column, direction) => {
      heads.forEach((h, i) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", i === column ? direction : "none"));
      const sign = direction === "ascending" ? 1 : -1;
      const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      body.append(...[...body.rows].sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * compare(x, y);
      }));
    };
    heads.forEach((h, i) => h.firstElementChild && h.firstElementChild.addEventListener("click", () =>
      sort(i, h.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending")));
    const ranked = heads.findIndex(h => h.matches(".score"));
    all("[data-order]", index).forEach(b => b.addEventListener("click", () => sort(ranked, b.dataset.order)));
    const search = index.querySelector("[type=search]");
    search.addEventListener("input", () => {
      for (const row of body.rows) row.hidden = !row.cells[1].textContent.toLowerCase().includes(search.value.toLowerCase());
    });
  }
  show();
})();

"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const data = JSON.parse(document.querySelector("#rows").textContent);
  const sections = all("main > section"), tables = all("table"), rows = all("tbody tr");
  const fields = all(".tools [name]"), bar = document.querySelector(".reference");
  document.documentElement.classList.add("js");

  // The address holds the state, so that a view can be linked to: #dataset=…&protocol=…&status=…&phantom=yes|no
  // &method=…&reference=<row>&sort=<metric>&order=ascending|descending
  const state = () => new URLSearchParams(location.hash.slice(1));
  const change = changes => {
    const next = state();
    for (const [key, value] of Object.entries(changes)) value ? next.set(key, value) : next.delete(key);
    history.replaceState(null, "", `#${next}`);
    show();
  };

  // What two rows must agree in to be compared; what is not known (null) agrees with anything.
  const difference = (a, b) => {
    for (const [name, mine] of Object.entries(a.identity)) {
      const theirs = b.identity[name];
      if (mine !== theirs && mine !== null && theirs !== null) return `other ${name}: ${theirs || "any"}, not ${mine || "any"}`;
    }
    return "";
  };

  const agrees = (row, wanted) => {
    const own = data[row.dataset.row];
    return (!wanted.get("dataset") || own.identity.dataset === wanted.get("dataset"))
      && (!wanted.get("protocol") || own.identity.protocol === wanted.get("protocol"))
      && (!wanted.get("status") || own.status === wanted.get("status"))
      && (!wanted.get("phantom") || own.phantom === (wanted.get("phantom") === "yes"))
      && own.name.toLowerCase().includes((wanted.get("method") || "").toLowerCase());
  };

  const filter = wanted => {
    for (const row of rows) row.hidden = !agrees(row, wanted);
    for (const part of all(".part")) part.hidden = !all("tbody tr", part).some(row => !row.hidden);
    for (const section of sections) section.hidden = all(".part", section).every(part => part.hidden);
    for (const link of all("nav a")) link.hidden = document.querySelector(link.hash).hidden;
    document.querySelector(".nothing").hidden = sections.some(section => !section.hidden);
    for (const field of fields) field.value = wanted.get(field.name) || "";
  };

  // The reference: what must not be compared with it is grey and says why; the rest says how far it is from it.
  const compare = id => {
    const reference = data[id], reasons = new Map();
    all(".why, .why-all, .delta").forEach(part => part.remove());
    for (const row of rows) {
      const reason = reference ? difference(reference, data[row.dataset.row]) : "";
      reasons.set(row, reason);
      row.classList.toggle("chosen", row.dataset.row === id);
      row.classList.toggle("other", Boolean(reason));
      const button = row.querySelector(".pick");
      if (button) button.setAttribute("aria-pressed", String(row.dataset.row === id));
    }
    bar.hidden = !reference;
    if (!reference) return;
    for (const section of sections) {
      const found = [...new Set(all("tbody tr", section).map(row => reasons.get(row)))];
      if (found.length === 1 && found[0]) addText(section.querySelector("header"), "p", "why-all", `Not comparable with the reference: ${found[0]}.`);
      else all("tbody tr.other", section).forEach(row => addText(row.querySelector("th"), "span", "why", reasons.get(row)));
    }
    const values = {};
    for (const row of rows.filter(row => row.dataset.row === id)) {
      for (const cell of all("td[data-key]", row)) if (cell.dataset.v) values[cell.dataset.key] = Number(cell.dataset.v);
    }
    for (const row of rows.filter(row => !reasons.get(row) && row.dataset.row !== id)) {
      for (const cell of all("td[data-key]", row)) {
        if (!cell.dataset.v || !(cell.dataset.key in values)) continue;
        const delta = Number(cell.dataset.v) - values[cell.dataset.key];
        addText(cell, "span", "delta", `${delta < 0 ? "−" : "+"}${Math.abs(delta).toFixed(4)}`);
      }
    }
    const may = new Set(all(".delta").map(part => part.closest("tr").dataset.row));
    const grey = new Set(rows.filter(row => reasons.get(row)).map(row => row.dataset.row));
    bar.querySelector(".text").textContent =
      `Reference: ${reference.name} (${reference.source}). Rows that may be compared with it and show their distance: ${may.size}. Grey rows, which may not: ${grey.size}.`;
  };
  const addText = (parent, tag, name, text) => {
    const part = document.createElement(tag);
    part.className = name;
    part.textContent = text;
    parent.append(part);
  };

  // Sorting: every table that has the column.
  const sort = (key, order) => {
    for (const table of tables) {
      const heads = all("thead th", table), column = heads.findIndex(head => head.dataset.key === key);
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? order : "none"));
      const body = table.tBodies[0], sign = order === "ascending" ? 1 : -1;
      const own = row => column < 0 ? Number(row.dataset.place) : value(row.cells[column]);
      body.append(...[...body.rows].sort((a, b) => {
        const x = own(a), y = own(b);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.dataset.place - b.dataset.place;
        const way = column < 0 ? 1 : sign;
        return way * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) || a.dataset.place - b.dataset.place;
      }));
    }
  };
  const value = cell => "v" in cell.dataset ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent;

  const show = () => {
    const wanted = state();
    filter(wanted);
    compare(wanted.get("reference"));
    sort(wanted.get("sort"), wanted.get("order") === "ascending" ? "ascending" : "descending");
  };

  // What can be clicked.
  for (const name of all("tbody th .method")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "pick";
    button.title = "Compare the other rows with this one";
    button.append(...name.childNodes);
    name.append(button);
    const id = name.closest("tr").dataset.row;
    button.addEventListener("click", () => change({ reference: state().get("reference") === id ? "" : id }));
  }
  for (const head of all("thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const first = head.classList.contains("number") ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      if (now === "none" || now === null) change({ sort: head.dataset.key, order: first });
      else if (now === first) change({ sort: head.dataset.key, order: first === "descending" ? "ascending" : "descending" });
      else change({ sort: "", order: "" });
    });
  }
  for (const field of fields) field.addEventListener("input", () => change({ [field.name]: field.value }));
  document.querySelector("[data-reset]").addEventListener("click", () => change(Object.fromEntries([...fields.map(f => [f.name, ""]), ["reference", ""], ["sort", ""], ["order", ""]])));
  document.querySelector("[data-clear]").addEventListener("click", () => change({ reference: "" }));
  for (const link of all("nav a")) {
    link.addEventListener("click", event => { event.preventDefault(); document.querySelector(link.hash).scrollIntoView(); });
  }
  for (const link of all("a[data-notes]")) {
    const notes = document.querySelector(link.hash), numbers = link.dataset.notes.split(" ");
    link.title = numbers.map(number => `[${number}] ${notes.querySelector(`[data-number="${number}"]`).lastChild.textContent}`).join("\n");
    link.addEventListener("click", event => {
      event.preventDefault();
      notes.open = true;
      all("li", notes).forEach(note => note.classList.toggle("on", numbers.includes(note.dataset.number)));
      (notes.querySelector("li.on") || notes).scrollIntoView({ block: "center" });
    });
  }
  addEventListener("keydown", event => { if (event.key === "Escape" && !event.target.matches("input")) change({ reference: "" }); });
  addEventListener("hashchange", show);
  show();
  const reference = document.querySelector("tr.chosen");
  if (reference) reference.scrollIntoView({ block: "center" });
})();

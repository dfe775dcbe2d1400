"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // A table's rows, sorted by a column and filtered by words.
  const NUMBER = /[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?/i;
  const value = (cell) => {
    const text = cell.textContent.replace(/−/g, "-").replace(/^[≤≥<>?△▲▽▼=○…·\s]+/, "");
    const found = NUMBER.exec(text);
    return found && found.index === 0 ? parseFloat(found[0].replace(/,/g, "")) : NaN;
  };
  const compare = (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (!isNaN(a) && !isNaN(b)) return a - b;
    if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
    return one.textContent.localeCompare(other.textContent, "en");
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column]));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
    if (body.rows.length > 10) {
      const field = document.createElement("input");
      field.type = "search";
      field.placeholder = "filter rows";
      field.setAttribute("aria-label", "Filter the rows of this table");
      field.addEventListener("input", () => {
        const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
        for (const row of body.rows) {
          const text = row.textContent.toLowerCase();
          row.hidden = !words.every((word) => text.includes(word));
        }
      });
      table.closest(".scroll").before(field);
    }
  }

  // What is wider than its box says so, as soon as it is seen.
  const sized = new ResizeObserver((boxes) => {
    for (const { target } of boxes) target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1);
  });
  for (const box of document.querySelectorAll(".scroll")) sized.observe(box);

  // A link to something inside a fold opens it.
  const unfold = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    const target = name && !name.includes("=") && $(name);
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // The runs.
  if (!$("runs")) return;
  const runs = JSON.parse($("runs").textContent);
  const KEYS = ["problem", "optimizer", "clip", "at", "lr", "seed"];
  const fields = Object.fromEntries(KEYS.map((key) => [key, $(`run-${key}`)]));
  const RATIOS = ["loss", "grad_norm", "kept", "cosine", "changed", "update_norm"];
  const plot = JSON.parse($("plot").textContent);
  const AXES = 90; // pixels beside a plot, for its axis
  // The results folder: it holds the page's own, if the page is where `clipbench report` puts it.
  const around = location.protocol === "file:" && /^(.+)\/report\/report\.html$/.exec(decodeURIComponent(location.pathname));
  const quoted = (path) => (/^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replace(/'/g, `'\\''`)}'`);
  const folder = quoted(around ? around[1] : `results/${$("run-replay").dataset.study}`);
  let shown = Promise.resolve(null);
  let chosen = null;

  const fits = (run, upTo) => KEYS.slice(0, upTo).every((key) => String(run[key]) === fields[key].value);
  // Of the runs that fit so far, the first at a setting that was chosen on the selection seeds.
  const preferred = (upTo) => {
    const fitting = runs.filter((run) => run.chosen && fits(run, upTo));
    const rank = Math.max(...fitting.map((run) => run.chosen));
    return fitting.find((run) => run.chosen === rank);
  };
  const fill = (from) => {
    for (let place = from; place < KEYS.length; place++) {
      const key = KEYS[place];
      const before = fields[key].value;
      const options = [...new Set(runs.filter((run) => fits(run, place)).map((run) => String(run[key])))];
      if (key === "lr" || key === "seed") options.sort((a, b) => parseFloat(a) - parseFloat(b));
      fields[key].replaceChildren(...options.map((one) => new Option(one || "–", one)));
      if (options.includes(before)) fields[key].value = before;
      if (key === "at" || key === "lr") {
        const best = preferred(place);
        if (best) fields[key].value = String(best[key]);
      }
      fields[key].parentElement.hidden = options.length === 1 && options[0] === "";
    }
  };
  const points = (run, name) =>
    run.step.map((step, place) => {
      const point = { step, run: name, clipped: run.clip !== "none" && name === "with the clip" };
      for (const key of RATIOS) point[key] = run[key][place];
      if (!(point.loss > 0)) point.loss = null;
      if (!(point.grad_norm > 0)) point.grad_norm = null;
      return point;
    });
  const partner = (run) =>
    runs.find((one) => one.clip === "none" && ["problem", "optimizer", "lr", "seed"].every((key) => one[key] === run[key]));
  const words = (run) => {
    const first = run.loss.find((one) => one !== null);
    const last = run.loss.filter((one) => one !== null).at(-1);
    const told = [
      `${run.problem}, ${run.optimizer}${run.clip === "none" ? "" : ` + ${run.clip} at ${run.at}`}, lr ${run.lr}, seed ${run.seed}: ${run.ended}`,
      `training loss ${first} → ${last} in ${run.step.at(-1) + 1} steps`,
    ];
    if (run.metric) told.push(run.metric);
    if (run.fired) told.push(`the clip fired in ${run.fired} of steps`);
    if (run.events.length) told.push(`events: ${run.events.map(([step, kind]) => `${kind} at step ${step}`).join(", ")}`);
    return `${told.join("; ")}.`;
  };
  const draw = () => {
    chosen = runs.find((run) => fits(run, KEYS.length));
    if (!chosen) return;
    const other = chosen.clip === "none" ? null : partner(chosen);
    const name = chosen.clip === "none" ? "without a clip" : "with the clip";
    const rows = [...points(chosen, name), ...(other ? points(other, "without it") : [])];
    $("run-words").textContent = words(chosen) + (other ? ` Without the clip: ${other.ended}.` : "");
    $("run-replay").textContent = `clipbench replay ${folder} ${chosen.id}`;
    $("run-link").href = `#run=${chosen.id}`;
    shown = shown.then((before) => paint(rows, chosen).then((made) => (before?.finalize(), made)));
  };
  const paint = (rows, run) => {
    const [loss, norm, left] = structuredClone(plot.vconcat);
    if (!run.events.length) loss.layer.pop(); // an empty layer has no extent
    if (!(run.limit > 0)) norm.layer.splice(1); // no threshold, or one of something else
    const panels = run.clip === "none" ? [loss, norm] : [loss, norm, left];
    const width = Math.max(200, $("run-plot").clientWidth - AXES);
    const datasets = { points: rows, marks: run.events.map(([step, kind]) => ({ step, kind })), limits: [{ limit: run.limit }] };
    const spec = { ...plot, datasets, vconcat: panels.map((panel) => ({ ...panel, width })) };
    return window.vegaEmbed("#run-plot", spec, { ast: true, renderer: "svg", actions: false }).then((made) => {
      $("run-plot").dataset.run = run.id;
      return made;
    });
  };
  const choose = (run) => {
    KEYS.forEach((key, place) => {
      fill(place);
      fields[key].value = String(run[key]);
    });
    draw();
  };
  const fromLink = () => {
    const [key, id] = location.hash.slice(1).split("=");
    const run = key === "run" && runs.find((one) => one.id === id);
    if (run) {
      choose(run);
      $("viewer").scrollIntoView();
    }
    return Boolean(run);
  };
  KEYS.forEach((key, place) =>
    fields[key].addEventListener("change", () => {
      fill(place + 1);
      draw();
      history.replaceState(null, "", `#run=${chosen.id}`);
    }),
  );
  addEventListener("hashchange", fromLink);
  if (!fromLink()) choose(runs.find((run) => run.id === $("run-plot").dataset.first) ?? runs[0]);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 200);
  });
})();

"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { names, keys, steps, intervals, prototypes, ranked, inClasses, perClass, pairs, images, ledger } = data;
  const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2"];
  // What is no prototype, in a stack of them.
  const START = "at the start", OTHERS = "other prototypes", NOWHERE = "no place";
  const GREYS = { [START]: "#b9bdc4", [OTHERS]: "#7d838c", [NOWHERE]: "#4d535b" };
  const stories = new Map(images.stories.map((story, place) => [story.row, { ...story, place }]));

  // Whatever is a text stays one: children that are no elements become text nodes.
  const el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === false || value === null || value === undefined) continue;
      if (key === "style") made.style.cssText = value;
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return made;
  };
  const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const signed = (value, digits = 2) => {
    const text = number(value, digits);
    return Number(text) > 0 ? "+" + text : text.replace(/^-(0[.0]*)$/, "$1");
  };
  const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits) + " %");
  const list = (items) => items.join(", ");
  // In a sentence a name stands in quotation marks: classes may be called 1 or "and".
  const quoted = (c) => `“${names[c]}”`;

  // Links. A hyphen stands between two names, so that within a name it is percent-encoded too.
  const encoded = (name) => encodeURIComponent(name).replace(/-/g, "%2D");
  const link = {
    prototype: (id) => "#prototype=" + id,
    class: (c) => "#class=" + encoded(keys[c]),
    pair: (a, b) => "#pair=" + encoded(keys[a]) + "-" + encoded(keys[b]),
    image: (row) => "#image=" + row,
  };
  const to = {
    prototype: (id) => el("a", { href: link.prototype(id) }, String(id)),
    class: (c) => el("a", { href: link.class(c) }, names[c]),
    image: (row, text) => (stories.has(row) ? el("a", { href: link.image(row) }, text) : text),
  };

  const table = (label, head, rows) =>
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      el("table", {},
        el("thead", {}, el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)))),
        el("tbody", {}, rows.map((row) =>
          el("tr", {}, row.map((cell, place) => el(place ? "td" : "th", place ? {} : { scope: "row" }, cell)))))));
  const more = (summary, ...inside) => el("details", {}, el("summary", {}, summary), ...inside);
  const chooser = (label, id, options, chosen, changed) => {
    const select = el("select", { id }, options.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, text)));
    select.addEventListener("change", () => changed(select.value));
    return el("label", { for: id }, label, select);
  };
  // Of many classes nobody looks through a list: a box in which names are typed, and completed.
  const MANY = 40;
  const classChooser = (label, id, chosen, changed) => {
    if (names.length <= MANY) return chooser(label, id, names.map((name, c) => [c, name]), chosen, (value) => changed(Number(value)));
    const box = el("input", { type: "search", id, list: id + "-names", value: names[chosen], size: 28, autocomplete: "off", spellcheck: "false" });
    const note = el("small", { role: "status" });
    box.addEventListener("focus", () => box.select());
    box.addEventListener("change", () => {
      const typed = box.value.trim().toLowerCase();
      const like = names.map((_, c) => c).filter((c) => names[c].toLowerCase().includes(typed));
      const exact = names.indexOf(box.value);
      const found = exact >= 0 ? exact : like.find((c) => names[c].toLowerCase() === typed) ?? (like.length === 1 ? like[0] : -1);
      if (typed && found >= 0) changed(found);
      else note.textContent = like.length && typed ? `${like.length} classes are called so, such as ${list(like.slice(0, 5).map((c) => names[c]))}` : "No class is called so.";
    });
    return el("label", { for: id }, label, box, el("datalist", { id: id + "-names" }, names.map((name) => el("option", { value: name }))), note);
  };
  // Long lists show a page at a time.
  const PAGE = 60;
  const paged = (place, items, what) => {
    let shown = 0;
    const next = el("button", { type: "button" });
    const show = () => {
      place.append(...items.slice(shown, shown + PAGE).map((make) => make()));
      shown = Math.min(shown + PAGE, items.length);
      next.textContent = `Show ${Math.min(PAGE, items.length - shown)} more of ${items.length} ${what}`;
      if (shown === items.length) next.remove();
    };
    place.after(next);
    next.addEventListener("click", show);
    show();
  };
  const strip = (uri, [count, width, height], alt) => el("img", { class: "strip", src: uri, width: count * (width + 2) - 2, height, alt });
  const sprite = (uri, x, y, [width, height], alt) =>
    el("img", { class: "sprite", src: uri, width, height, alt, style: `object-position:-${x}px -${y}px` });

  // Charts are drawn when they come near the window, and the rest when nothing else is to do, so that print has all.
  const pending = new Map();
  const views = new WeakMap();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const refuse = async () => { throw new Error("this page loads nothing"); };
  // What hangs on the rows: the order of the series in the legend, and a scale of colours that is grey at 0.
  const adapt = ({ color, shape }, rows) => {
    const largest = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-9);
    const series = () => [...new Set(rows.map((row) => row.series))];
    if (shape) color.scale.domain = shape.scale.domain = series();
    else if (color && color.type === "quantitative") color.scale.domain = [-largest, largest];
    else if (color && !color.scale.domain.length) {
      color.scale.domain = series();
      color.scale.range = series().map((name, place) => GREYS[name] || COLOURS[place]);
    }
  };
  // On a phone long labels stand aslant and legends are folded; the style sheet keeps room for both.
  const NARROW = 480;
  const narrow = ({ x, color, shape }) => {
    if (x && x.axis && x.sort && x.sort.join("").length > 24) Object.assign(x.axis, { labelAngle: -40 });
    for (const channel of [color, shape]) {
      if (!channel || !channel.legend || !channel.legend.columns) continue;
      const longest = Math.max(...channel.scale.domain.map((name) => name.length));
      channel.legend.columns = longest > 18 ? 1 : longest > 5 ? 2 : 4;
    }
  };
  const draw = async (place) => {
    const chart = pending.get(place);
    if (!chart) return;
    pending.delete(place);
    watcher.unobserve(place);
    const spec = structuredClone(data.specs[chart.name]);
    if (chart.rows) {
      spec.datasets = { rows: chart.rows };
      if (chart.lines) spec.height = 20 * chart.lines;
      for (const { encoding } of spec.layer) adapt(encoding, chart.rows);
    }
    if (place.clientWidth < NARROW) for (const { encoding } of spec.layer || [spec]) narrow(encoding);
    if (chart.description) spec.description = chart.description;
    const result = await vegaEmbed(place, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true,
      tooltip: { theme: dark.matches ? "dark" : "light" },
      loader: { load: refuse, sanitize: refuse, http: refuse, file: refuse },
    });
    if (!place.isConnected) return result.finalize();
    views.set(place, result);
    result.view.addEventListener("click", (event, item) => {
      const pair = item && item.datum && item.datum.link;
      if (pair) location.hash = link.pair(keys.indexOf(pair[0]), keys.indexOf(pair[1]));
    });
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "400px" });
  const plan = (place, name, rows, description, lines) => {
    pending.set(place, { name, rows, description, lines });
    watcher.observe(place);
  };
  const plot = (name, rows, caption, lines) => {
    const place = el("div", { class: "plot", "data-chart": name, style: `--room:${lines ? 20 * lines + (name === "waterfall" ? 55 : 110) : 340}px` });
    plan(place, name, rows, caption, lines);
    return el("figure", {}, el("figcaption", {}, caption), place);
  };
  const whenIdle = window.requestIdleCallback || ((call) => setTimeout(call, 200));
  const drawRest = () => {
    const next = pending.keys().next();
    if (!next.done) draw(next.value).then(() => whenIdle(drawRest));
  };
  const fill = (panel, ...content) => {
    for (const place of panel.querySelectorAll(".plot")) {
      pending.delete(place);
      watcher.unobserve(place);
      if (views.has(place)) views.get(place).finalize();
    }
    panel.replaceChildren(...content.flat(Infinity).filter(Boolean));
    if (document.readyState === "complete") whenIdle(drawRest);
  };
  const panel = (name) => document.getElementById(name + "-panel");
  const mark = (root, current) => {
    for (const each of root.querySelectorAll("a[aria-current]")) each.removeAttribute("aria-current");
    if (current) current.setAttribute("aria-current", "true");
  };
  const heatRows = (rows) => Math.max(1, new Set(rows.map((row) => row.prototype)).size);

  // Prototypes
  const gallery = document.getElementById("gallery");
  // The first pictures of the strip, where there is no room for all.
  const part = (found, count, alt) => {
    const [, width, height] = found.tiles;
    return el("img", { class: "part", src: found.framed, width: count * (width + 2) - 2, height, alt });
  };
  const firstOf = (each, count) => each.strongest ? part(each.strongest, count, "Where it is strongest, in images of " + list(each.strongest.labels.slice(0, count).map(quoted))) : null;
  const inClass = (k, c) => {
    const found = inClasses[k + " " + c];
    return found ? part(found, found.rows.length, "Where it is strongest in images of " + quoted(c)) : firstOf(prototypes[k], 4);
  };
  const supported = (each) => each.supports.filter(([, value]) => value >= 0.05 * each.supports[0][1]).map(([c, value]) => `${quoted(c)} by ${number(value)}`);
  const inOrder = ranked.map((id) => prototypes[id]);
  const gives = ({ look: [rank, c, evidence] }) => (rank ? `one place gives ${quoted(c)} ${signed(evidence)}; ` : "too few places to be ranked; ");
  paged(gallery, inOrder.map((each) => () =>
    el("li", {}, el("a", { href: link.prototype(each.id), id: "card-" + each.id },
      el("b", {}, "Prototype " + each.id),
      firstOf(each, 4),
      el("span", {}, gives(each) + percent(each.share) + " of locations; " + (each.supports.length ? "raises " + list(supported(each)) : "raises no class"))))), "prototypes");

  const examples = (each, kind, title) => {
    const found = each[kind];
    if (!found) return el("p", {}, "No image has this prototype.");
    const of = list(found.labels.map((c) => names[c]));
    const [count, width, height] = found.tiles;
    return el("div", {},
      el("h4", {}, title),
      strip(found.crops, [count, 60, 60], `${title}: crops of prototype ${each.id} from images of ${of}`),
      el("p", { style: "margin:.2rem 0" }),
      strip(found.framed, [count, width, height], `${title}: the same places framed in their images`),
      el("p", { class: "how" }, "Images ", found.rows.flatMap((row, place) => [place ? ", " : "", to.image(row, String(row)), ` (${names[found.labels[place]]}, ${number(found.intensity[place])})`]), "."));
  };
  const showPrototype = (id) => {
    const each = prototypes[id];
    mark(gallery, document.getElementById("card-" + id));
    const last = steps.length - 1;
    const held = Object.keys(each.own).map(Number);
    const order = [...held].sort((c, d) => Math.abs(each.own[d][last]) - Math.abs(each.own[c][last])).slice(0, 5);
    const rows = order.flatMap((c) => steps.map((step, t) => ({ step, series: names[c], value: each.own[c][t] })));
    const every = held.length === names.length ? "every class" : `${held.length} of ${names.length} classes; contributions.npz has all`;
    fill(panel("prototype"),
      el("h3", { tabindex: -1 }, "Prototype " + id),
      el("div", { class: "chooser" }, chooser("Prototype", "choose-prototype", inOrder.map((p) => [p.id, `${p.id} (${percent(p.share)})`]), id, (value) => go(link.prototype(value)))),
      el("p", { class: "lead" }, each.words),
      el("p", {}, `It holds ${percent(each.share)} of all locations (${each.count.toLocaleString("en")}). `,
        each.supports.length ? ["It raises the logit of ", each.supports.flatMap(([c, value], place) => [place ? ", " : "", to.class(c), ` by ${number(value)}`]), " on average over that class. "] : "On average it raises the logit of no class over its own images. ",
        "Nearest prototypes: ", each.nearest.flatMap(([k, distance], place) => [place ? ", " : "", to.prototype(k), ` (distance ${number(distance)})`]), "."),
      el("p", { class: "how" }, "Orange frame: the crop, around the most salient place. Blue frame: all that this place of the feature map can see, up to the border of the image. In brackets: class and intensity."),
      el("div", { class: "two" }, examples(each, "strongest", "Highest intensity"), examples(each, "random", "Drawn at random")),
      plot("prototype", rows, `Mean contribution of prototype ${id} to the logit of a class, over that class's images, at each checkpoint: the classes with the largest at the end.`),
      more("Data: contribution to " + every, table("Contribution to classes", ["class", ...steps.map((s) => "step " + s)], held.map((c) => [names[c], ...each.own[c].map((value) => signed(value))]))));
  };

  // Accounts, in whole thousandths, so that what is shown adds up.
  const plain = (thousandths) => number(thousandths / 1000, 3);
  const moved = (thousandths) => signed(thousandths / 1000, 3);
  const othersOf = (count) => (count === 0 ? "rounding" : count === 1 ? "1 other prototype" : `${count} other prototypes`);
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const differences = (values) => values.slice(1).map((value, t) => value - values[t]);
  // A table whose rows in `sums` are sums: set off by a line.
  const ledgerTable = (label, head, rows, sums) => {
    const made = table(label, head, rows);
    made.firstChild.className = "ledger";
    const lines = made.querySelectorAll("tbody tr");
    for (const place of sums) lines[place].className = "sum";
    return made;
  };
  const courseTable = (label, course, what) => {
    const all = (values) => [...values, total(values)].map(moved);
    const { confidence } = course;
    const last = steps.length - 1;
    const rows = [
      [`${what} before`, ...confidence.slice(0, last).map(plain), plain(confidence[0])],
      ...course.prototypes.map((k, place) => [el("span", {}, "prototype ", to.prototype(k)), ...all(course.changes[place])]),
      [othersOf(course.others) + (course.bias ? "" : " and what belongs to no place"), ...all(course.rest)],
      ...(course.bias ? [["what belongs to no place", ...all(course.bias)]] : []),
      [`${what} after`, ...confidence.slice(1).map(plain), plain(confidence[last])],
    ];
    return ledgerTable(label, ["steps", ...intervals, "all"], rows, [0, rows.length - 1]);
  };
  const MOST_STACKED = 5;
  const stackRows = (course) => {
    const shown = course.prototypes.slice(0, MOST_STACKED);
    const folded = course.changes.slice(MOST_STACKED);
    const rest = course.rest.map((value, t) => value + total(folded.map((values) => values[t])));
    const layers = [
      ...shown.map((k, place) => ["prototype " + k, course.changes[place]]), [OTHERS, rest],
      ...(course.bias ? [[NOWHERE, course.bias]] : []), [START, null],
    ];
    // The legend begins with the largest, the stack with what was there.
    return layers.flatMap(([series, values], place) => steps.map((step, t) => ({
      step, series, order: values ? place : -1, value: (values ? total(values.slice(0, t)) : course.confidence[0]) / 1000,
    })));
  };
  const cropOf = (k) => {
    const found = prototypes[k].strongest;
    return found ? el("img", { class: "sprite crop", src: found.crops, width: 60, height: 60, alt: `Prototype ${k} where it is strongest` }) : null;
  };
  const waterfallRows = (entries, change) => {
    let reached = 0;
    const rows = entries.map(([label, value], order) => {
      const start = reached;
      reached += value;
      return { label: `${label}  ${moved(value)}`, order, start: start / 1000, end: reached / 1000, value: value / 1000, kind: value < 0 ? "fall" : "rise" };
    });
    return [...rows, { label: `together  ${moved(change)}`, order: rows.length, start: 0, end: change / 1000, value: change / 1000, kind: "sum" }];
  };
  const intervalLedger = (c, t) => {
    const { course, blank, intervals: found } = ledger.classes[c];
    const { named, others, rest, bias } = found[t];
    const [before, after] = course.confidence.slice(t, t + 2);
    const change = after - before;
    const rows = named.map((each) => [
      el("span", { class: "entry" }, cropOf(each.prototype), el("span", {}, "prototype ", to.prototype(each.prototype), el("small", {}, `in ${percent(each.present, 0)} of the images`))),
      moved(each.change), number(each.error / 1000, 4), moved(each.seeing), moved(each.weighing),
      each.taken === 0 ? "–" : el("span", {}, each.taken > 0 ? "taken from " : "given to ", to.class(each.rival), ` ${plain(Math.abs(each.taken))}`),
    ]);
    const entries = [...named.map((each) => ["prototype " + each.prototype, each.change]), [othersOf(others), rest], [NOWHERE, bias]];
    const empty = ["", "", "", ""];
    const near = blank.filter(([k]) => named.some((each) => each.prototype === k));
    return [
      el("p", { class: "lead" }, `Between step ${steps[t]} and ${steps[t + 1]} confidence in ${quoted(c)} ${change < 0 ? "fell" : "rose"} by ${plain(Math.abs(change))}: from ${plain(before)} to ${plain(after)}, on average over its own training images.`),
      ledgerTable("Entries of the interval", ["", "change", "standard error", "seen", "weighed", "mostly"], [
        [`confidence at step ${steps[t]}`, plain(before), ...empty], ...rows,
        [othersOf(others), moved(rest), ...empty], ["what belongs to no place", moved(bias), ...empty],
        [`confidence at step ${steps[t + 1]}`, plain(after), ...empty]], [0, rows.length + 3]),
      near.length ? el("p", { class: "how" }, `Beside a blank image: at the last checkpoint, in the logit of ${quoted(c)}, `, list(near.map(([k, own, of]) => `prototype ${k} adds ${signed(own)}, and the same places of a blank image ${signed(of)}`)), ". Where the blank image has much, it is not only what the images show that counts.") : null,
      plot("waterfall", waterfallRows(entries, change), `What was added to the confidence in ${quoted(c)} from step ${steps[t]} to ${steps[t + 1]}: orange raised it, blue lowered it; the last bar is the sum.`, entries.length + 1),
    ];
  };
  const ledgerOfClass = (c) => {
    if (!ledger) return [];
    const { course, most } = ledger.classes[c];
    const inside = el("div");
    const show = (t) => fill(inside, ...intervalLedger(c, Number(t)));
    show(most);
    const changes = differences(course.confidence);
    return [
      el("div", { class: "chooser" }, chooser("Interval, steps", "choose-ledger", intervals.map((name, t) => [t, `${name} (${moved(changes[t])})`]), most, show)),
      inside,
      el("p", { class: "how" }, "Seen: because the features at a prototype’s places changed. Weighed: because the head made something else of them. The two add up to the change. Mostly: the class that lost most by the entry, or gained most where it is negative. The standard error is over images of this one training run. What rounding leaves stands with the other prototypes."),
      el("h4", {}, "Over the whole training"),
      plot("stacked", stackRows(course), `Confidence in ${quoted(c)} at each checkpoint, as the sum of what it was at the start and of what each prototype had added by then. What lies below zero is to be taken off.`),
      courseTable("The whole training", course, "confidence"),
    ];
  };

  // Within a class
  let shownInterval = intervals.length - 1;
  const showClass = (c) => {
    const each = perClass[c];
    const last = steps.length - 1;
    const ids = prototypes.filter((p) => c in p.own).map((p) => p.id).sort((k, l) => Math.abs(prototypes[l].own[c][last]) - Math.abs(prototypes[k].own[c][last])).slice(0, 12);
    const contribution = ids.flatMap((k, order) => steps.map((time, t) => ({ time, prototype: String(k), order, value: prototypes[k].own[c][t], faint: false, mark: false, note: "" })));
    const supporting = [...new Set(each.support.map((s) => s[1]))];
    const support = each.support.map(([t, k, value, , disagrees]) => ({ time: intervals[t], prototype: String(k), order: supporting.indexOf(k), value, faint: false, mark: disagrees, note: disagrees ? "the contribution has the other sign" : "" }));
    const groups = el("div");
    const showGroups = (t) => {
      shownInterval = Number(t);
      const found = each.groups[shownInterval] || [];
      groups.replaceChildren(...(found.length ? found.map((group) => el("figure", {},
        el("figcaption", {}, `${group.id < 0 ? "Noise" : "Group " + group.id}: ${group.size} images; their confidence in ${quoted(c)} moved by ${signed(group.change, 3)} on average`),
        group.picture ? strip(group.picture, [group.rows.length, ...each.tile], `Images ${list(group.rows)}, drawn at random`) : null)) : [el("p", {}, "No image of this class changed in this interval.")]));
    };
    showGroups(Math.min(shownInterval, intervals.length - 1));
    const head = [
      el("h3", { tabindex: -1 }, "Class " + quoted(c)),
      el("div", { class: "chooser" }, classChooser("Class", "choose-class", c, (value) => go(link.class(value)))),
    ];
    if (!each.samples) return fill(panel("class"), head, el("p", {}, "No image of this class was explained; it is in the softmax of all others."));
    fill(panel("class"), head,
      ...ledgerOfClass(c),
      el("h4", {}, "What its images have in common"),
      el("p", {}, `${each.samples.toLocaleString("en")} training images. `, each.shared.length ? "Shared prototypes, salient in at least 80 % of them:" : "No prototype is salient in 80 % of them."),
      el("ul", { class: "chips" }, each.shared.map((k) => el("li", {}, to.prototype(k)))),
      plot("contributions", contribution, `Mean contribution to the logit of ${quoted(c)} over its images, at each checkpoint. Orange raises it, blue lowers it; the prototypes with the largest at the end.`, ids.length),
      more("Data: contributions", table("Contributions", ["prototype", ...steps.map((s) => "step " + s)], ids.map((k) => [to.prototype(k), ...prototypes[k].own[c].map((value) => signed(value))]))),
      el("h4", {}, "Groups of images that changed alike"),
      el("div", { class: "chooser" }, chooser("Interval, steps", "choose-interval", intervals.map((name, t) => [t, name]), shownInterval, showGroups)),
      groups,
      each.specialised.length
        ? more("Data: specialised prototypes, salient in one group and not in another", table("Specialised prototypes", ["steps", "prototype", "group with most", "share", "group with least", "share"], each.specialised.map(([t, k, most, high, least, low]) => [intervals[t], to.prototype(k), most, percent(high, 0), least, percent(low, 0)])))
        : el("p", {}, "No prototype sets one group of this class apart from another."),
      el("h4", {}, "By the regression"),
      support.length
        ? [plot("support", support, `Support for ${quoted(c)}: how far confidence moves when the prototype changes by one deviation, in intervals where a fit can be measured and with a sign that the bootstrap agrees on. A diamond says that the contribution has the other sign and is the one to believe.`, supporting.length),
          more("Data: support", table("Support", ["steps", "prototype", "support", "contribution, logits", "signs"], each.support.map(([t, k, value, logits, disagrees]) => [intervals[t], to.prototype(k), signed(value, 4), signed(logits), disagrees ? "differ" : "agree"])))]
        : el("p", {}, "In no interval does a prototype support this class with a sure sign."));
  };

  // Between two classes
  const findPair = (a, b) => pairs.find((pair) => (pair.a === a && pair.b === b) || (pair.a === b && pair.b === a));
  const pairChoosers = (a, b) => el("div", { class: "chooser" },
    classChooser("One class", "choose-a", a, (value) => choosePair(value, b, true)),
    classChooser("Another class", "choose-b", b, (value) => choosePair(a, value, false)));
  // Where both are the same class, the one that was not just chosen gives way.
  const choosePair = (a, b, first) => {
    const other = (c) => (c === 0 ? 1 : 0);
    go(a !== b ? link.pair(a, b) : first ? link.pair(a, other(a)) : link.pair(other(b), b));
  };
  const MOST_LISTED = 8;
  const ledgerOfPair = (pair) => {
    if (!ledger) return [];
    const { sides } = ledger.pairs[pairs.indexOf(pair)];
    const [A, B] = [quoted(pair.a), quoted(pair.b)];
    const side = (course, own) => {
      const changes = differences(course.confidence);
      const largest = changes.reduce((best, value, t) => (Math.abs(value) > Math.abs(changes[best]) ? t : best), 0);
      const rows = course.prototypes.flatMap((k, order) => intervals.map((time, t) => ({ time, prototype: String(k), order, value: course.changes[order][t] / 1000, faint: false, mark: false, note: "" })));
      const caption = `On images of ${own}: from ${moved(course.confidence[0])} to ${moved(course.confidence[steps.length - 1])}, most in steps ${intervals[largest]} (${moved(changes[largest])}).`;
      return el("div", {}, rows.length ? plot("moved", rows, caption, course.prototypes.length) : el("p", {}, caption + " No prototype moved it."));
    };
    return [
      el("h4", {}, "What told them apart"),
      el("p", { class: "how" }, `Confidence in ${A} less that in ${B}: what each prototype added to it. Orange is towards ${A}, blue towards ${B}.`),
      el("div", { class: "two" }, side(sides[0], A), side(sides[1], B)),
      ...[[sides[0], A], [sides[1], B]].map(([course, own]) => more(`Data: account on images of ${own}`, courseTable(`Account on images of ${own}`, course, "difference"))),
    ];
  };
  const waveringOfPair = (pair) => {
    if (!ledger) return [];
    const { wavering } = ledger.pairs[pairs.indexOf(pair)];
    const flips = new Map(pair.uncertain.map(([k, , count]) => [k, count]));
    return [
      wavering.length
        ? table("Wavering prototypes", ["prototype", "wavered by the account", "score of the regression", "its sign changes"], wavering.map(([k, score, other]) => [to.prototype(k), number(score, 4), number(other, 4), flips.has(k) ? String(flips.get(k)) : "–"]))
        : el("p", {}, "By its account no prototype wavered between the two."),
      el("p", { class: "how" }, "By the account a prototype wavers as far as what it adds to the difference turned from one interval to the next, over the images of both classes. Neither this nor the score of the regression tells which images fail."),
    ];
  };
  const showPair = (a, b) => {
    const pair = findPair(a, b);
    const most = pairs.slice(0, 8).map((each) => el("li", {}, el("a", { href: link.pair(each.a, each.b) }, `${names[each.a]} / ${names[each.b]}`)));
    const head = [el("h3", { tabindex: -1 }, `${quoted(a)} and ${quoted(b)}`), pairChoosers(a, b), el("p", { class: "how" }, "Most confused pairs:"), el("ul", { class: "chips" }, most)];
    if (!pair && pairs.length === data.allPairs) return fill(panel("pair"), ...head, el("p", {}, "These two are hardly confused, or not both explained: nothing was kept of one on images of the other."));
    if (!pair) return fill(panel("pair"), ...head, el("p", {}, `This page holds the ${pairs.length} most confused pairs of ${data.allPairs}, and this is none of them; explanation.json has them all.`));
    const [A, B] = [quoted(pair.a), quoted(pair.b)];
    const rows = pair.heat.map((cell) => ({
      time: intervals[cell.time], order: cell.order, value: cell.value, faint: cell.faint, mark: cell.mark,
      prototype: cell.prototype + (cell.uncertain ? " uncertain" : ""),
      note: [cell.faint ? "interval does not count: its fit is not above its null" : "", cell.stable ? "sign sure" : "sign not sure", cell.mark ? "sign turned" : ""].filter(Boolean).join("; "),
    }));
    const wavering = pair.uncertain.filter(([k]) => !pair.skipped.includes(k)).map(([k]) => k);
    const left = pair.refined ? images.kinds.left_out : [];
    const values = new Map(pair.heat.map((cell) => [cell.prototype + " " + cell.time, cell.value]));
    fill(panel("pair"), ...head,
      el("p", { class: "lead" }, pair.told_apart === null ? `${A} and ${B} are never told apart for good.` : `${A} and ${B} are told apart from step ${pair.told_apart} on.`),
      el("p", {}, `At the end, on validation images: ${pair.confusions[0]} of ${A} taken for ${B}, ${pair.confusions[1]} of ${B} taken for ${A}; images of ${A} get ${percent(pair.soft[0])} confidence in ${B} on average, images of ${B} ${percent(pair.soft[1])} in ${A}.`),
      ...ledgerOfPair(pair),
      el("h4", {}, "Separating prototypes"),
      el("p", { class: "how" }, `Evidence for the right one of the two, in logits, by the contributions at the last checkpoint. A negative figure speaks for the wrong one. The pictures are of the class on which the prototype weighs more.`),
      table("Separating prototypes", ["prototype", "on images of " + A, "on images of " + B, "where it is strongest"],
        pair.separating.map(([k, onA, onB, c]) => [to.prototype(k), signed(onA), signed(onB), inClass(k, c) || ""])),
      el("h4", {}, "What wavered"),
      ...waveringOfPair(pair),
      !pair.analysed
        ? el("p", {}, "This pair was not analysed for uncertain prototypes: explain.max_pairs bounds how many are.")
        : [
          el("p", {}, `${pair.counted.filter(Boolean).length} of ${intervals.length} intervals count, because a fit on this pair beats its null there. `,
            pair.uncertain.length ? ["Uncertain prototypes, whose sure effect turned from one class to the other: ", pair.uncertain.slice(0, MOST_LISTED).flatMap(([k, score, flips], place) => [place ? ", " : "", to.prototype(k), ` (score ${number(score, 4)}, ${flips} sign changes${pair.skipped.includes(k) ? ", skipped: would leave out too much" : ""})`]), pair.uncertain.length > MOST_LISTED ? ` and ${pair.uncertain.length - MOST_LISTED} with lower scores.` : "."] : "No prototype turned with a sure sign."),
          rows.length ? [plot("pair", rows, `s: how far one deviation of a prototype's change moved confidence from ${B} (blue) towards ${A} (orange), in each interval. Pale: the interval does not count. Diamond: the sure sign of an uncertain prototype turned here.${pair.refined ? "" : " Only uncertain prototypes are kept for this pair."}`, heatRows(rows)),
            more("Data: s over time", table("s over time", ["prototype", ...intervals], [...new Set(pair.heat.map((cell) => cell.prototype))].map((k) => [to.prototype(k), ...intervals.map((_, t) => signed(values.get(k + " " + t), 4))])))] : null,
          more("Data: fit of this pair", table("Fit of this pair", ["steps", "r²", "null, 95 %", "counts"], intervals.map((name, t) => [name, number(pair.r2[t], 3), number(pair.r2_null[t], 3), pair.counted[t] ? "yes" : "no"]))),
        ],
      pair.refined ? [el("h4", {}, pair.test.after.length ? "Left out of the fine-tuning" : "What the curated set leaves out"),
        left.length ? [el("p", {}, `Images that contain ${wavering.length > 1 ? "one of the prototypes" : "prototype"} `, wavering.slice(0, MOST_LISTED).flatMap((k, place) => [place ? ", " : "", to.prototype(k)]), wavering.length > MOST_LISTED ? ` or of ${wavering.length - MOST_LISTED} others` : "", "; drawn at random:"), thumbs(left, null)] : el("p", {}, "No image is left out.")] : null,
      el("h4", {}, "Confusions on the test set"),
      table("Confusions on the test set", ["model", `${A} taken for ${B}`, `${B} taken for ${A}`],
        [[pair.test.after.length ? "before refinement" : "as given", ...pair.test.before.map(String)], ...pair.test.after.map(([name, [one, two]]) => [name, number(one), number(two)])]),
      pair.test.after.length ? el("p", { class: "how" }, "After refinement: mean over seeds. Only the refined pair's images are left out, but every pair may change.") : null);
  };

  // One image
  const KINDS = [["confused", "Most confused at the end"], ["changed", "Most changed on the way"], ["left_out", "Left out by curation"], ["random", "Drawn at random from each class"]];
  let shownKind = "confused";
  const thumbs = (rows, current) => el("ul", { class: "thumbs" }, rows.map((row) => {
    const { place, label } = stories.get(row);
    const [x, y] = [(place % images.columns) * images.thumb[0], Math.floor(place / images.columns) * images.thumb[1]];
    return el("li", {}, el("a", { href: link.image(row), "aria-current": row === current ? "true" : null }, sprite(images.thumbs, x, y, images.thumb, `Image ${row}, ${names[label]}`)));
  }));
  const imageHead = (row, title) => {
    const kinds = KINDS.filter(([kind]) => images.kinds[kind].length);
    const chosen = el("div");
    const browse = (kind) => { shownKind = kind; chosen.replaceChildren(thumbs(images.kinds[kind], row)); };
    if (!images.kinds[shownKind].includes(row)) shownKind = (kinds.find(([kind]) => images.kinds[kind].includes(row)) || kinds[0])[0];
    browse(shownKind);
    return [el("div", { class: "chooser" }, chooser("Images", "choose-kind", kinds.map(([kind, text]) => [kind, `${text} (${images.kinds[kind].length})`]), shownKind, browse)), chosen, el("h3", { tabindex: -1 }, title)];
  };
  const accountOfImage = (row, label) => {
    const course = ledger && ledger.images[row];
    return course ? [el("h4", {}, "Its account"),
      el("p", { class: "how" }, `What the prototypes in this image added to its confidence in ${quoted(label)} in each interval. Each column adds up to its last line; what rounding leaves stands with the other prototypes.`),
      courseTable("Account of this image", course, "confidence")] : [];
  };
  const showImage = (row) => {
    const story = stories.get(row);
    if (!story) {
      return fill(panel("image"), ...imageHead(null, "Image " + row),
        el("p", {}, `Of the ${data.samples.toLocaleString("en")} training images this page holds ${stories.size}, and this is none of them. In Python, Run(DIRECTORY).story(image=${row}) tells its story.`));
    }
    const own = steps.map((_, t) => story.confidence[t][0]);
    const rows = story.classes.flatMap((c, series) => steps.map((step, t) => ({ step, series: names[c] + (series ? "" : " (label)"), value: story.confidence[t][series] })));
    const intensities = story.prototypes.flatMap(([k, , , values]) => steps.map((step, t) => ({ step, series: "prototype " + k, value: values[t] })));
    const frame = (place, caption, alt) => el("figure", {}, sprite(story.frames, place * images.frame[0], 0, images.frame, alt), el("figcaption", {}, caption));
    fill(panel("image"), ...imageHead(row, `Image ${row}: ${quoted(story.label)}`),
      el("p", { class: "lead" }, story.predicted === story.label ? `Recognised at the end, with a confidence of ${percent(own[own.length - 1])}.` : `Taken for ${quoted(story.predicted)} at the end; confidence in ${quoted(story.label)} is ${percent(own[own.length - 1])}.`),
      el("p", {}, story.reason),
      el("p", { class: "how" }, `Saliency at each checkpoint, over the image in grey: the stronger the orange, the more salient. One scale for all checkpoints; full colour is ${number(story.largest)}. Below each: step, confidence in ${quoted(story.label)}.`),
      el("div", { class: "frames" }, frame(0, "image", `Image ${row} of class ${quoted(story.label)}`),
        ...steps.map((step, t) => frame(t + 1, el("span", {}, `${step}`, el("br"), percent(own[t], 0)), `Saliency at step ${step}`))),
      el("div", { class: "beside" },
        el("figure", {}, el("figcaption", {}, "Prototypes with the most saliency"), el("img", { src: story.cells, width: images.large[0], height: images.large[1], alt: "Locations of prototypes " + list(story.prototypes.map(([k]) => k)) + " on the image" })),
        table("Prototypes of this image", ["prototype", "share of saliency", "share of area", "intensity at the end"],
          story.prototypes.map(([k, share, area, values], place) => [el("span", {}, el("span", { class: "swatch", style: "background:" + COLOURS[place] }), to.prototype(k)), percent(share, 0), percent(area, 0), number(values[values.length - 1])]))),
      el("div", { class: "two" },
        plot("confidence", rows, "Confidence in the label, and in the classes that came nearest, at each checkpoint."),
        intensities.length ? plot("intensity", intensities, "Intensity of these prototypes at each checkpoint, in logits.") : el("p", {}, "At the last checkpoint no place of this image speaks for the logit explained: it has no prototypes with saliency.")),
      ...accountOfImage(row, story.label),
      more("Data: confidence and intensity", table("Confidence and intensity", ["what", ...steps.map((s) => "step " + s)],
        [...story.classes.map((c, series) => [names[c], ...steps.map((_, t) => number(story.confidence[t][series], 3))]),
          ...story.prototypes.map(([k, , , values]) => [to.prototype(k), ...values.map((value) => number(value))])])));
  };

  // What an address asks for: the name of a view and how to show it, or null.
  const classOf = (text) => {
    const place = keys.indexOf(text);
    return place < 0 ? names.indexOf(text) : place;
  };
  const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
  const asked = (hash) => {
    const [, view, value] = /^#(pair|class|prototype|image)=(.*)$/s.exec(hash) || [];
    if (view === "prototype" && prototypes[value]) return ["prototype", () => showPrototype(Number(value))];
    if (view === "image" && /^\d+$/.test(value)) return ["image", () => showImage(Number(value))];
    if (view === "class" && classOf(decoded(value)) >= 0) return ["class", () => showClass(classOf(decoded(value)))];
    if (view === "pair") {
      const parts = value.split("-");
      for (let cut = 1; cut < parts.length; cut++) {
        const [a, b] = [parts.slice(0, cut), parts.slice(cut)].map((part) => classOf(decoded(part.join("-"))));
        if (a >= 0 && b >= 0 && a !== b) return ["pair", () => showPair(a, b)];
      }
    }
    return null;
  };
  const status = document.getElementById("status");
  // A choice in a view: the address follows, and the place of the page stays.
  const go = (hash) => {
    const focused = document.activeElement && document.activeElement.id;
    history.replaceState(null, "", hash);
    const found = asked(hash);
    found[1]();
    const again = focused && document.getElementById(focused);
    if (again) again.focus({ preventScroll: true });
    status.textContent = panel(found[0]).querySelector("h3").textContent + " is shown.";
  };
  const follow = () => {
    const found = asked(location.hash);
    if (found) {
      found[1]();
      const heading = panel(found[0]).querySelector("h3");
      heading.scrollIntoView();
      heading.focus({ preventScroll: true });
    } else if (/^#(pair|class|prototype|image)=/.test(location.hash)) {
      status.textContent = "This run has no " + decoded(location.hash.slice(1));
      const view = /^#(\w+)/.exec(location.hash)[1];
      const text = "This run has no " + decoded(location.hash.slice(1)) + ".";
      panel(view).prepend(el("p", { class: "warnings" }, text));
      panel(view).scrollIntoView();
    }
  };

  const start = () => {
    for (const place of document.querySelectorAll(".plot[data-chart]")) if (data.specs[place.dataset.chart]) plan(place, place.dataset.chart);
    showPrototype(ranked[0]);
    showClass(Math.max(0, perClass.findIndex((each) => each.samples)));
    const first = pairs.find((pair) => pair.refined) || pairs[0];
    showPair(first.a, first.b);
    showImage(images.kinds.confused[0]);
  };
  try {
    start();
  } finally {
    // Before the heading is focused: what is hidden takes no focus.
    document.documentElement.classList.remove("linking");
  }
  follow();
  window.addEventListener("hashchange", follow);
  window.addEventListener("load", () => whenIdle(drawRest));
  window.addEventListener("beforeprint", () => { for (const place of [...pending.keys()]) draw(place); });
})();

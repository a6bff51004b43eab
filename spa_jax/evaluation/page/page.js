"use strict";

/* Tables: a button in every heading of a sortable one. */
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const isNumeric = (column) => rows.every((row) => /^[−-]?[\d.,]+( %)?$/.test(value(row, column)));
  const number = (text) => Number(text.replace("−", "-").replace(/,| %/g, ""));

  const sort = (column) => {
    const numeric = isNumeric(column);
    const before = headings[column].getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = before === first ? other : first;
    for (const heading of headings) heading.setAttribute("aria-sort", "none");
    headings[column].setAttribute("aria-sort", order);
    const compare = numeric
      ? (a, b) => number(value(a, column)) - number(value(b, column))
      : (a, b) => value(a, column).localeCompare(value(b, column), "en", { numeric: true });
    const sign = order === "ascending" ? 1 : -1;
    table.tBodies[0].append(...[...rows].sort((a, b) => sign * compare(a, b)));
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    if (!heading.hasAttribute("aria-sort")) heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column));
  });
}

/* A link to a closed card opens it. */
const openTarget = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();

/* The explorer. Texts are set as text, so a name that looks like HTML stays a name. */
const explore = (data) => {
  const byId = (name) => document.getElementById(`explorer-${name}`);
  const [modelChoice, attackChoice, classChoice] = ["model", "attack", "class"].map(byId);
  const NO_ANSWER = -1;
  const NONE = -1;

  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const className = (label) => (label === NO_ANSWER ? "no answer" : data.names[label]);
  const fill = (choice, entries, wanted) => {
    choice.replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", text);
      option.value = value;
      return option;
    }));
    choice.value = entries.some(([value]) => value === wanted) ? wanted : entries[0][0];
  };
  const model = () => data.models[modelChoice.value];
  const attack = () => model().attacks[attackChoice.value];

  const verdict = (answer, label) => {
    const right = answer === label;
    const line = make("span", undefined, `answer ${right ? "right" : "wrong"}`);
    const mark = make("span", right ? "✓ " : "✗ ");
    mark.setAttribute("aria-hidden", "true");
    line.append(mark, make("span", right ? "right: " : "wrong: ", "hidden"), className(answer));
    line.title = className(answer);
    return line;
  };
  const shot = (place, what, alt, below, signed) => {
    const own = make("div", undefined, "shot");
    const image = make("img");
    image.src = `data:image/png;base64,${data.images[place]}`;
    image.alt = alt;
    if (signed) image.className = "signed";
    own.append(image, make("span", what, "what"));
    if (below) own.append(below);
    return own;
  };
  const card = (row) => {
    const [index, label, fooled, answer, editedAnswer, clean, edited, attacked, noise, numbers] = row;
    const { gain, numbers: names } = attack();
    const figure = make("figure", undefined, "card");
    const caption = make("figcaption");
    const turn = fooled ? `${className(label)} → ${className(answer)}` : `stays ${className(label)}`;
    caption.append(make("span", turn, "turn"), make("span", `image ${index}`));
    const strip = make("div", undefined, "strip");
    const of = `image ${index} of class ${className(label)}`;
    strip.append(shot(clean, "original", `Original ${of}`, verdict(label, label)));
    if (edited !== clean && edited !== attacked) {
      strip.append(shot(edited, "edited", `Edited ${of}, without noise`, verdict(editedAnswer, label)));
    }
    strip.append(shot(attacked, "attacked", `Attacked ${of}`, verdict(answer, label)));
    if (noise !== NONE) {
      strip.append(shot(noise, `noise × ${gain}`, `Noise on ${of}, amplified ${gain} times`, null, !data.colored));
    }
    figure.append(caption, strip);
    if (names.length) {
      const values = make("p", names.map((name, i) => `${name}: ${numbers[i]}`).join(", "), "values");
      figure.append(values);
    }
    const item = make("li");
    item.append(figure);
    return item;
  };

  const show = () => {
    const { rows, counts } = attack();
    const label = classChoice.value;
    const own = rows.filter((row) => label === "" || String(row[1]) === label);
    const known = Object.entries(counts).filter(([name]) => label === "" || name === label).map(([, both]) => both);
    const fooled = known.reduce((sum, both) => sum + both[0], 0);
    const attacked = known.reduce((sum, both) => sum + both[1], 0);
    const totals = { fooled, survivors: attacked - fooled };
    const shown = { fooled: own.filter((row) => row[2]), survivors: own.filter((row) => !row[2]) };
    for (const [name, list] of Object.entries(shown)) {
      const nothing = make("li", totals[name] ? "None of them was kept." : "There are none.", "nothing");
      byId(name).replaceChildren(...(list.length ? list.map(card) : [nothing]));
    }
    byId("status").textContent =
      `${shown.fooled.length} of ${fooled} fooled images and ${shown.survivors.length} of ${totals.survivors} survivors ` +
      `of ${model().name} under ${attack().name}` + (label === "" ? "." : `, class ${className(label)}.`);
  };
  const chooseClass = (wanted) => {
    const { counts } = attack();
    const labels = data.classes.map(String);
    const both = labels.map((name) => counts[name] ?? [0, 0]);
    const sums = both.reduce((sum, own) => [sum[0] + own[0], sum[1] + own[1]], [0, 0]);
    const told = ([fooled, attacked]) => `(${fooled} of ${attacked} fooled)`;
    const entries = labels.map((name, i) => [name, `${className(name)} ${told(both[i])}`]);
    fill(classChoice, [["", `All classes ${told(sums)}`], ...entries], wanted);
    show();
  };
  const chooseAttack = (wanted, label) => {
    const attacks = model().attacks.map((own, i) => [String(i), own.name]);
    const same = attacks.find(([, name]) => name === wanted);
    fill(attackChoice, attacks, same ? same[0] : String(attacks.length - 1));
    chooseClass(label);
  };

  document.getElementById("explorer-shown").classList.toggle("crisp", data.crisp);
  fill(modelChoice, data.models.map((own, i) => [String(i), own.name]), "0");
  modelChoice.addEventListener("change", () => {
    chooseAttack(attackChoice.selectedOptions[0].textContent, classChoice.value);
  });
  attackChoice.addEventListener("change", () => chooseClass(classChoice.value));
  classChoice.addEventListener("change", show);
  const first = Object.entries(data.models[0].attacks.at(-1).counts).find(([, both]) => both[0] > 0);
  chooseAttack(undefined, first ? first[0] : "");
  byId("shown").hidden = false;
};
const stored = document.getElementById("explorer-data");
if (stored) explore(JSON.parse(stored.textContent));

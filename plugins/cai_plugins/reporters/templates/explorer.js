"use strict";
// Shows units: lists, filters, sorts, searches and opens them. Texts are untrusted: nodes are made with createElement
// and textContent alone, and the page's policy allows no other script and no request.
(() => {
  const PAGE = 50;
  const LONGEST_DIFFERENCE = 4e6; // cells of the table of the word comparison; about a tenth of a second
  const root = document.getElementById("units");
  if (!root) return;
  const at = (name) => root.querySelector("[data-at=" + name + "]");
  const [kind, tag, order, search, list, state, back, next, all] =
    ["kind", "tag", "order", "search", "list", "state", "back", "next", "all"].map(at);
  // One array per column, in the order of the units: 100,000 arrays would take the better part of a second to read.
  let index = { kinds: [], tags: [], orders: [], id: [], kind: [], tagged: [], title: [], by: [] };
  let shown = [];
  let page = 0;
  let run = 0;
  const kept = new Map();

  function decode(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // many times as fast, and in browsers from 2025 on
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  }

  async function unpack(element) {
    const packed = decode(element.textContent);
    // A Blob would be read by way of another process, which is busy with the page for as long as that loads.
    const stream = new ReadableStream({ start(to) { to.enqueue(packed); to.close(); } });
    const reader = stream.pipeThrough(new DecompressionStream("deflate")).getReader();
    const decoder = new TextDecoder();
    let text = "";
    for (let part; !(part = await reader.read()).done; ) text += decoder.decode(part.value, { stream: true });
    return JSON.parse(text + decoder.decode());
  }

  // Shards are below this script in the page, so that the list need not wait for them. One is whole when the next is there.
  async function element(number) {
    for (;;) {
      const there = document.querySelectorAll("script[data-shard]");
      if (there.length > number + 1 || document.readyState !== "loading") return there[number];
      await new Promise((go) => setTimeout(go, 50));
    }
  }

  async function shard(number, keep) {
    if (kept.has(number)) return kept.get(number);
    const found = await unpack(await element(number));
    if (keep) {
      if (kept.size > 3) kept.delete(kept.keys().next().value);
      kept.set(number, found);
    }
    return found;
  }

  function make(name, style, text) {
    const element = document.createElement(name);
    if (style) element.className = style;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function words(text) {
    return text.match(/\s+|[^\s]+/gu) || [];
  }

  // Longest common subsequence of words; null where it would take too long.
  function difference(before, after) {
    const a = words(before), b = words(after), wide = b.length + 1;
    if (a.length * b.length > LONGEST_DIFFERENCE) return null;
    const table = new Uint32Array((a.length + 1) * wide);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        table[i * wide + j] = a[i] === b[j] ? table[(i + 1) * wide + j + 1] + 1
          : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
    const parts = [];
    const add = (name, word) => {
      const last = parts[parts.length - 1];
      if (last && last[0] === name) last[1] += word; else parts.push([name, word]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
      else if (j >= b.length || (i < a.length && table[(i + 1) * wide + j] >= table[i * wide + j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    return parts;
  }

  function text(words, missing) {
    if (words === null) return make("p", "missing", missing || "no text");
    const element = make("div", "text", words);
    element.dir = "auto";
    return element;
  }

  const blocks = {
    head: (block) => { const h = make("h4"); h.append(make("bdi", "", block.text)); return [h]; },
    text: (block) => [make("p", "label", block.label), text(block.text, block.missing)],
    difference: (block) => {
      const parts = difference(block.before, block.text);
      const label = make("p", "label", block.label);
      if (!parts) return [label, text(block.text), make("p", "small soft", "Too long to mark what changed.")];
      if (parts.every((part) => !part[0])) return [label, text(block.text), make("p", "small soft", "Nothing changed.")];
      const element = text("");
      for (const [name, words] of parts) element.append(name ? make(name, "", words) : document.createTextNode(words));
      return [label, element];
    },
    sides: (block) => {
      const element = make("div", "sides");
      for (const [label, words, missing] of block.sides) {
        const side = make("div");
        const name = make("p", "label");
        name.append(make("bdi", "", label));
        side.append(name, text(words, missing));
        element.append(side);
      }
      return [element];
    },
    facts: (block) => {
      const element = make("dl");
      for (const [name, value] of block.facts) {
        const key = make("dt"), fact = make("dd");
        key.append(make("bdi", "", name));
        fact.append(make("bdi", "", value));
        element.append(key, fact);
      }
      return [element];
    },
    failure: (block) => {
      const element = make("p", "missing");
      element.append(make("span", "tag", block.kind), " ", make("bdi", "", block.text));
      return [element];
    },
  };

  function fill(details, unit) {
    for (const block of unit.blocks) {
      const made = blocks[block.type](block), last = details.lastElementChild;
      if (block.type === "facts" && last && last.tagName === "DL") last.append(...made[0].children); // one table
      else details.append(...made);
    }
  }

  function tagsOf(number) {
    return index.tagged[number] ? index.tagged[number].split(",") : [];
  }

  function row(number) {
    const title = index.title[number];
    const details = make("details"), summary = make("summary");
    summary.append(make("code", "", index.id[number]), " ", make("span", "soft", index.kinds[index.kind[number]]));
    for (const name of tagsOf(number)) {
      const label = make("span", "soft");
      label.append(" · ", make("bdi", "", index.tags[name]));
      summary.append(label);
    }
    if (title) { const words = make("bdi", "", title); words.dir = "auto"; summary.append(" · ", words); }
    details.append(summary);
    details.addEventListener("toggle", async () => {
      if (!details.open || details.dataset.filled) return;
      details.dataset.filled = "yes";
      const units = await shard(Math.floor(number / index.each), true);
      fill(details, units[number % index.each]);
    });
    return details;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(row));
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
    state.textContent = shown.length
      ? `${page * PAGE + 1} to ${Math.min(shown.length, (page + 1) * PAGE)} of ${shown.length}`
      : "No unit is like that.";
  }

  async function select() {
    const mine = ++run;
    const wanted = search.value.trim().toLowerCase();
    let found = [...index.id.keys()].filter((number) =>
      (kind.value === "" || index.kind[number] === +kind.value)
      && (tag.value === "" || tagsOf(number).includes(tag.value)));
    if (wanted) {
      const matching = [];
      const groups = new Map();
      for (const number of found) {
        const group = Math.floor(number / index.each);
        if (!groups.has(group)) groups.set(group, []);
        groups.get(group).push(number);
      }
      let done = 0;
      for (const [group, numbers] of groups) {
        state.textContent = `Searching: ${Math.round((100 * done++) / groups.size)} %`;
        const units = await shard(group, false);
        if (mine !== run) return;
        for (const number of numbers)
          if (haystack(number, units[number % index.each]).includes(wanted)) matching.push(number);
      }
      found = matching;
    }
    if (order.value !== "") {
      const by = +order.value;
      const value = (number) => index.by[by][number];
      const sign = index.orders[by][1] === "down" ? -1 : 1;
      found.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    shown = found;
    page = 0;
    draw();
  }

  function haystack(number, unit) {
    const parts = [index.id[number], index.title[number]];
    for (const block of unit.blocks)
      for (const value of Object.values(block))
        parts.push(typeof value === "string" ? value : Array.isArray(value) ? value.flat().join("\n") : "");
    return parts.join("\n").toLowerCase();
  }

  function options(element, names) {
    names.forEach((name, number) => {
      const option = make("option", "", name);
      option.value = String(number);
      element.append(option);
    });
  }

  let waiting = 0;
  const later = () => { clearTimeout(waiting); waiting = setTimeout(select, 250); };
  for (const element of [kind, tag, order]) element.addEventListener("change", select);
  search.addEventListener("input", later);
  back.addEventListener("click", () => { page--; draw(); list.scrollIntoView(); });
  next.addEventListener("click", () => { page++; draw(); list.scrollIntoView(); });
  all.addEventListener("click", () => {
    const rows = [...list.querySelectorAll("details")];
    const open = rows.some((details) => !details.open);
    for (const details of rows) details.open = open;
  });

  unpack(document.querySelector("script[data-index]")).then((found) => {
    index = found;
    options(kind, index.kinds);
    options(tag, index.tags);
    options(order, index.orders.map((entry) => entry[0]));
    at("controls").hidden = false;
    at("off").hidden = true;
    return select();
  });
})();

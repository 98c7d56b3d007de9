// What a reader with poor sight, or without a mouse, would stumble over in a page: sentences, none if all is well.
(() => {
  const found = [];
  const all = [...document.querySelectorAll("body *")];
  const seen = (element) => element.checkVisibility() && element.getClientRects().length > 0;
  const told = (element) => {
    return `<${element.localName} ${element.id || element.className} ${element.textContent.slice(0, 30)}>`;
  };

  // Colours as a canvas makes them, whatever notation they have.
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const known = new Map();
  function colour(text) {
    if (!known.has(text)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = text;
      pen.fillRect(0, 0, 1, 1);
      known.set(text, [...pen.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(text);
  }
  function luminance([red, green, blue]) {
    const linear = (part) => (part <= 0.04045 * 255 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  }
  function ground(element) {
    for (let at = element; at; at = at.parentElement) {
      const here = colour(getComputedStyle(at).backgroundColor);
      if (here[3] === 255) return here;
      if (here[3] > 0) found.push(`the ground of ${told(at)} is neither opaque nor clear`);
    }
    return [255, 255, 255];
  }
  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  for (const element of all.filter((element) => hasText(element) && seen(element))) {
    const style = getComputedStyle(element);
    const ratio = contrast(colour(element instanceof SVGElement ? style.fill : style.color), ground(element));
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)} of ${told(element)}`);
  }
  for (const mark of [...document.querySelectorAll("svg rect, svg path, .law, .edge, .spike, .bar")].filter(seen)) {
    const style = getComputedStyle(mark);
    const paint = mark.matches(".bar") ? style.backgroundColor : style.fill === "none" ? style.stroke : style.fill;
    const ratio = contrast(colour(paint), ground(mark.parentElement));
    if (ratio < 3) found.push(`contrast ${ratio.toFixed(2)} of the mark ${told(mark)}`);
  }

  const ids = all.map((element) => element.id).filter(Boolean);
  if (new Set(ids).size < ids.length) found.push("two elements have one id");
  for (const element of all) {
    for (const name of ["aria-labelledby", "aria-controls", "aria-describedby", "for", "list"]) {
      for (const id of (element.getAttribute(name) ?? "").split(/\s+/).filter(Boolean)) {
        if (!document.getElementById(id)) found.push(`${name} of ${told(element)} names nothing`);
      }
    }
    if (element.tabIndex > 0) found.push(`${told(element)} jumps the order of the keyboard`);
    for (const { name } of element.attributes) {
      if (name.startsWith("on")) found.push(`${told(element)} has a handler in its markup`);
    }
  }
  const OWNERS = {
    row: ["rowgroup", "table", "grid"],
    cell: ["row"],
    gridcell: ["row"],
    columnheader: ["row"],
    rowheader: ["row"],
    rowgroup: ["table", "grid"],
  };
  for (const element of document.querySelectorAll("[role]")) {
    const owners = OWNERS[element.getAttribute("role")];
    if (owners && !owners.includes(element.parentElement.getAttribute("role"))) {
      found.push(`${told(element)} has a role out of place`);
    }
  }
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
    if (Number(heading.localName[1]) > level + 1) found.push(`${told(heading)} leaves a level out`);
    level = Number(heading.localName[1]);
  }
  for (const name of ["main", "h1", "title"]) {
    if (document.querySelectorAll(name).length !== 1) found.push(`not one ${name}`);
  }
  if (!document.documentElement.lang) found.push("no language");
  for (const element of document.querySelectorAll("button, a[href], input, select")) {
    const { width, height } = element.getBoundingClientRect();
    if (seen(element) && (width < 16 || height < 16)) found.push(`${told(element)} is hard to hit`);
  }
  for (const element of all.filter(seen)) {
    const { overflowX, overflowY } = getComputedStyle(element);
    const scrolls =
      (["auto", "scroll"].includes(overflowX) && element.scrollWidth > element.clientWidth + 1) ||
      (["auto", "scroll"].includes(overflowY) && element.scrollHeight > element.clientHeight + 1);
    const reached = element.tabIndex >= 0 || element.querySelector("a[href], button, [tabindex='0']");
    if (scrolls && !reached) found.push(`${told(element)} scrolls, and no key gets there`);
  }
  if (document.documentElement.scrollWidth > window.innerWidth) found.push("the page sticks out sideways");
  return found;
})();

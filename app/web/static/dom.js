// Elements from descriptions. Text is only ever set as text, so nothing that comes from a tenant is read as markup.
// A view is described anew whenever something changes; `patch` changes what differs and leaves the rest, so that focus,
// scrolling and selections stay where they are.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle", "rect", "line", "polyline", "g", "title"]);

function present(nodes) {
  return nodes.flat(Infinity).filter((node) => node !== null && node !== undefined && node !== false);
}

export function h(tag, props, ...children) {
  const given = props || {};
  return { tag, props: given, key: given.key ?? null, children: present(children) };
}

function make(node, inSvg) {
  if (typeof node !== "object") return document.createTextNode(String(node));
  const svg = inSvg || node.tag === "svg";
  const element = svg && SVG_TAGS.has(node.tag) ? document.createElementNS(SVG, node.tag) : document.createElement(node.tag);
  element.vnode = { props: {}, children: [] };
  update(element, node, svg);
  return element;
}

function update(element, node, svg) {
  const before = element.vnode.props;
  for (const name of Object.keys(before)) if (!(name in node.props)) set(element, name, null, svg);
  for (const [name, value] of Object.entries(node.props)) if (before[name] !== value) set(element, name, value, svg);
  element.vnode = node;
  patch(element, node.children, svg);
}

function set(element, name, value, svg) {
  if (name === "key") return;
  if (name.startsWith("on")) {
    element[name] = value;
  } else if (name === "vars") {
    for (const [variable, one] of Object.entries(value || {})) element.style.setProperty(variable, one);
  } else if (name === "value" && !svg) {
    if (element !== document.activeElement) element.value = value ?? "";
  } else if (name === "checked") {
    element.checked = Boolean(value);
  } else if (value === null || value === undefined || value === false) {
    element.removeAttribute(name);
  } else {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

function same(element, node) {
  if (typeof node !== "object") return element.nodeType === Node.TEXT_NODE;
  return element.vnode !== undefined && element.vnode.tag === node.tag && (element.vnode.key ?? null) === node.key;
}

export function patch(parent, nodes, svg = false) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (child.vnode && child.vnode.key !== null && child.vnode.key !== undefined) keyed.set(child.vnode.key, child);
  let next = parent.firstChild;
  for (const node of present(nodes)) {
    let element = next;
    if (typeof node === "object" && node.key !== null && keyed.has(node.key)) element = keyed.get(node.key);
    if (element && same(element, node)) {
      if (element === next) next = next.nextSibling;
      else parent.insertBefore(element, next);
      if (typeof node === "object") update(element, node, svg || node.tag === "svg");
      else if (element.nodeValue !== String(node)) element.nodeValue = String(node);
    } else {
      parent.insertBefore(make(node, svg), next);
    }
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

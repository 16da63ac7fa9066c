// Small helpers for the page's elements.

export const at = id => document.getElementById(id);

// An element with text or elements in it.
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'onclick') made.onclick = value;
    else made.setAttribute(name, value);
  }
  made.append(...content);
  return made;
}

// What is under the pointer.

const tooltipElement = document.getElementById("tooltip");

/** Show a title and a text beside the pointer. */
export function showTooltip(event, title, text) {
  const strong = document.createElement("strong");
  strong.textContent = title.length > 300 ? `${title.slice(0, 300)}…` : title;
  const rest = document.createElement("div");
  rest.className = "dim";
  rest.textContent = text;
  tooltipElement.replaceChildren(strong, rest);
  tooltipElement.hidden = false;
  const { width, height } = tooltipElement.getBoundingClientRect();
  tooltipElement.style.left = `${Math.max(0, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tooltipElement.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}

/** Take it away. */
export function hideTooltip() {
  tooltipElement.hidden = true;
}

"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const settings = { responsive: true, displayModeBar: false, displaylogo: false };
  const places = Object.keys(figures).map((name) => document.getElementById(name)).filter(Boolean);

  // With a view box a drawing shrinks with its place, even where no script runs again (print).
  const scalable = (place) => {
    for (const drawing of place.querySelectorAll(".main-svg")) {
      const [width, height] = ["width", "height"].map((side) => drawing.getAttribute(side));
      if (width && height) drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
  };
  for (const place of places) {
    const { data, layout } = figures[place.id];
    Plotly.newPlot(place, data, layout, settings).then(() => {
      scalable(place);
      place.on("plotly_afterplot", () => scalable(place));
    });
  }

  const folded = () => document.querySelectorAll("details:not(.numbers)");
  let opened = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    opened = [...folded()].filter((part) => !part.open);
    for (const part of opened) part.open = true;
    for (const place of places) Plotly.relayout(place, { width: place.clientWidth });
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    for (const part of opened) part.open = false;
    for (const place of places) Plotly.relayout(place, { width: null, autosize: true });
  });
})();

// Shows every curve's value under the pointer. The page is complete without it.
'use strict';
const tip = document.getElementById('tip');
const few = new Intl.NumberFormat('en', { maximumSignificantDigits: 4 });

function row(left, right, colour) {
  const line = document.createElement('div');
  if (colour !== undefined) {
    line.append(document.createElement('i'));
    line.firstChild.style.background = `var(--c${colour})`;
  }
  line.append(left);
  const value = document.createElement('b');
  value.append(right);
  line.append(value);
  return line;
}

function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best), points[0]);
}

for (const figure of document.querySelectorAll('[data-chart]')) {
  const chart = JSON.parse(figure.dataset.chart);
  for (const plot of figure.querySelectorAll('.plot')) {
    const [left, top, right, bottom] = plot.dataset.plot.split(' ').map(Number);
    const cross = document.createElement('div');
    cross.className = 'cross';
    cross.hidden = true;
    cross.style.top = `${top * 100}%`;
    cross.style.height = `${(bottom - top) * 100}%`;
    plot.append(cross);

    plot.addEventListener('pointermove', (event) => {
      const box = plot.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width - left) / (right - left);
      tip.hidden = cross.hidden = share < 0 || share > 1;
      if (tip.hidden) return;
      const x = chart.x[0] + share * (chart.x[1] - chart.x[0]);
      const at = chart.axes === 'nines' ? `${few.format(100 - 100 * 10 ** -x)} %` : `${few.format(x)} s`;
      const rows = chart.lines.map(([name, colour, points]) => {
        const value = nearest(points, x)[1];
        return row(name, value === null ? 'none' : `${few.format(value)} ${chart.unit}`, colour);
      });
      tip.replaceChildren(row(at, ''), ...rows);
      cross.style.left = `${(left + share * (right - left)) * 100}%`;
      const room = event.clientX + tip.offsetWidth + 24 < document.documentElement.clientWidth;
      tip.style.left = `${room ? event.clientX + 16 : Math.max(4, event.clientX - tip.offsetWidth - 16)}px`;
      tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
    });
    plot.addEventListener('pointerleave', () => { tip.hidden = cross.hidden = true; });
  }
}

// A click on a header sorts its table: best first (text: A to Z), then the other way, then as before.
// A cell counts as the number that its own text begins with; dashes stay last either way.
document.querySelectorAll('table').forEach(table => {
  const body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.querySelectorAll('th[data-better]')];
  const key = (row, i) => {
    const text = (row.cells[i].firstChild?.textContent ?? '').trim();
    return text === '–' || text === '' ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b
    : String(a).localeCompare(String(b), undefined, {numeric: true});
  heads.forEach((head, i) => {
    const sort = () => {
      const text = rows.map(row => key(row, i)).some(value => typeof value === 'string');
      const order = text || head.dataset.better === '-1' ? ['ascending', 'descending']
        : ['descending', 'ascending'];
      const next = order[order.indexOf(head.getAttribute('aria-sort')) + 1];
      heads.forEach(other => other.removeAttribute('aria-sort'));
      if (next) head.setAttribute('aria-sort', next);
      const sign = next === 'ascending' ? 1 : -1;
      body.append(...(next ? [...rows].sort((p, q) => {
        const a = key(p, i), b = key(q, i);
        return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
      }) : rows));
    };
    head.tabIndex = 0;
    head.title = 'sort';
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === 'Enter') sort(); };
  });
});

'use strict';
(() => {
  const at = id => document.getElementById(id);

  // Cells without a value stay at the end, whichever way the others are turned.
  function sort(table, column, down) {
    const body = table.tBodies[0];
    const value = row => {
      const cells = [...row.cells].filter(c => !c.matches('.see'));
      const text = cells[column].dataset.v;
      if (text === undefined) return null;
      return text !== '' && Number.isFinite(Number(text)) ? Number(text) : text;
    };
    const rows = [...body.rows].map((row, i) => ({row, i, v: value(row)}));
    const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
    rows.sort((a, b) => (a.v === null) - (b.v === null) || (a.v === null ? 0 : (down ? -1 : 1) * compare(a.v, b.v)) || a.i - b.i);
    body.append(...rows.map(r => r.row));
    const heads = [...table.tHead.querySelectorAll('[aria-sort]')];
    heads.forEach((head, i) => head.setAttribute('aria-sort', i === column ? (down ? 'descending' : 'ascending') : 'none'));
    if (table.matches('.pictures')) at('sort').value = String(column);
  }

  for (const table of document.querySelectorAll('table.sorts')) {
    const heads = [...table.tHead.querySelectorAll('[aria-sort]')];
    heads.forEach((head, i) => {
      head.querySelector('button').onclick = () => sort(table, i, head.getAttribute('aria-sort') === 'ascending');
    });
  }

  const pictures = document.querySelector('table.pictures');
  const rows = [...pictures.tBodies[0].rows];
  const method = at('method'), find = at('find');

  function narrow() {
    const text = find.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const name = row.querySelector('th').dataset.v.toLowerCase();
      row.hidden = Boolean(method && method.value && row.dataset.method !== method.value) || !name.includes(text);
      shown += !row.hidden;
    }
    at('shown').textContent = shown < rows.length ? `${shown} of ${rows.length} shown` : '';
  }

  if (method) method.onchange = narrow;
  find.oninput = narrow;
  at('sort').onchange = () => sort(pictures, Number(at('sort').value), false);
  at('turn').onclick = () => {
    const column = Number(at('sort').value);
    const head = pictures.tHead.querySelectorAll('[aria-sort]')[column];
    sort(pictures, column, head.getAttribute('aria-sort') !== 'descending');
  };
  at('maps').onclick = () => at('maps').setAttribute('aria-pressed', String(document.body.classList.toggle('maps')));
  for (const shot of document.querySelectorAll('button.shot')) {
    shot.onclick = () => shot.setAttribute('aria-pressed', String(shot.getAttribute('aria-pressed') !== 'true'));
  }
})();
